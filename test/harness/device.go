package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// readyWithin bounds how long a started device may take to become ready. It is
// far above the budget: a test asserts that a state is reached, and a loaded
// machine is no failure.
const readyWithin = 60 * time.Second

// Device is one machine with a daemon.
type Device struct {
	Name string
	Addr netip.Addr
	// Dir holds data/ (survives a reboot), run/ (does not), logs/ and the
	// daemon's output in edged.log.
	Dir string
	// Binary is the daemon's, if not [Edged].
	Binary string
	// Hostname is the machine's name, which counts where the daemon is not told
	// another: [Device.Rename] changes it.
	Hostname string
	// Nameless has the daemon started without --node-name.
	Nameless bool

	tb     TB
	sw     *Switch
	m      *machine
	daemon *exec.Cmd
	exited chan struct{}
	flags  []string
	mac    net.HardwareAddr
	loop   string // of a disk of its own, such as "loop0"
	clock  bool   // SetClock was called
	frozen bool
}

// Edged is the binary under test.
func Edged() string {
	if p := os.Getenv("EDGED"); p != "" {
		return p
	}
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return filepath.Join(dir, "bin", "edged")
		}
		dir = filepath.Dir(dir)
	}
	return "bin/edged"
}

// Kubectl is the kubectl to drive devices with.
func Kubectl() string {
	if p := os.Getenv("KUBECTL"); p != "" {
		return p
	}
	if p := filepath.Join(filepath.Dir(Edged()), "kubectl"); fileExists(p) {
		return p
	}
	return "kubectl"
}

func fileExists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// New makes device number n (from 1) on sw, with its daemon not yet started.
// flags are given to `edged run` beside those that name its folders.
func New(tb TB, sw *Switch, n int, flags ...string) *Device {
	tb.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &fs); err != nil {
		tb.Fatalf("device %d: %s: %v", n, os.TempDir(), err)
	}
	// A device takes no Pods with less than a tenth.
	if free := float64(fs.Bavail) / float64(fs.Blocks); free < 0.11 {
		tb.Fatalf("device %d: of the file system of %s only %.1f %% are free: devices need more than 11", n, os.TempDir(), 100*free)
	}
	dir, err := os.MkdirTemp("", "ed-")
	if err != nil {
		tb.Fatalf("device %d: %v", n, err)
	}
	addr := Subnet.Addr()
	for range n + 9 {
		addr = addr.Next()
	}
	name := "device-" + strconv.Itoa(n)
	d := &Device{Name: name, Hostname: name, Addr: addr, Dir: dir, tb: tb, sw: sw, flags: flags, mac: hardwareAddr(addr)}
	for _, sub := range []string{"data", "run", "logs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			tb.Fatalf("device %d: %v", n, err)
		}
	}
	d.powerOn()
	tb.Cleanup(d.discard)
	return d
}

// NewOnDisk is New with the data-dir on a disk of its own, of sizeMiB: an ext4
// file system on a loop device, so that it can be filled, and so that what is
// written to it can be counted at the block layer.
func NewOnDisk(tb TB, sw *Switch, n int, sizeMiB int, flags ...string) *Device {
	tb.Helper()
	d := New(tb, sw, n, flags...)
	image := filepath.Join(d.Dir, "disk.img")
	script := `set -e
truncate -s "$2M" "$1"
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$1"
loop=$(losetup --find --show "$1")
mount -o noatime "$loop" "$3"
losetup --detach "$loop" # when it is unmounted
basename "$loop"`
	out, err := exec.Command("sh", "-c", script, "sh", image, strconv.Itoa(sizeMiB), d.DataDir()).Output()
	if err != nil {
		tb.Fatalf("%s: make a disk: %v", d.Name, err)
	}
	d.loop = strings.TrimSpace(string(out))
	d.PowerOff()
	d.powerOn()
	return d
}

// BytesWritten is what the data-dir's disk has been given to write since it was
// made, from the block layer's statistics (Documentation/block/stat.rst). It
// syncs the disk first.
func (d *Device) BytesWritten() int64 {
	d.tb.Helper()
	if out, err := exec.Command("sync", "-f", d.DataDir()).CombinedOutput(); err != nil {
		d.tb.Fatalf("%s: sync: %v %s", d.Name, err, out)
	}
	data, err := os.ReadFile("/sys/block/" + d.loop + "/stat")
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	sectors, err := strconv.ParseInt(strings.Fields(string(data))[6], 10, 64)
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	return sectors * 512
}

// Lone makes a switch and one device on it, starts it and waits until it is
// ready.
func Lone(tb TB, flags ...string) *Device {
	tb.Helper()
	d := New(tb, NewSwitch(tb), 1, flags...)
	d.Start()
	d.WaitReady()
	return d
}

func (d *Device) powerOn() {
	d.tb.Helper()
	setup := fmt.Sprintf(`mkdir -p /var/log/pods /var/log/containers
mount --bind %[1]s/logs /var/log/pods
mount -t tmpfs tmpfs %[1]s/run
hostname %[2]s
`, d.Dir, d.Hostname)
	m, err := boot(filepath.Base(d.Dir), true, setup)
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	d.m = m
	if err := d.sw.plug(m, d.Addr, d.mac); err != nil {
		m.halt()
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
}

// DataDir, RunDir and Kubeconfig are paths that the host and the device share
// (the run-dir's content is seen by the device only).
func (d *Device) Switch() *Switch    { return d.sw }
func (d *Device) DataDir() string    { return filepath.Join(d.Dir, "data") }
func (d *Device) RunDir() string     { return filepath.Join(d.Dir, "run") }
func (d *Device) Kubeconfig() string { return filepath.Join(d.DataDir(), "admin.kubeconfig") }

// Start starts the daemon. extra flags are for this start only.
func (d *Device) Start(extra ...string) {
	d.tb.Helper()
	out, err := os.OpenFile(filepath.Join(d.Dir, "edged.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	defer out.Close()
	binary := d.Binary
	if binary == "" {
		binary = Edged()
	}
	argv := []string{binary, "run", "--data-dir", d.DataDir(), "--run-dir", d.RunDir()}
	if !d.Nameless {
		argv = append(argv, "--node-name", d.Name)
	}
	cmd := d.m.command(context.Background(), append(append(argv, d.flags...), extra...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if d.clock {
		cmd.Env = append(os.Environ(), "EDGED_TEST_CLOCK="+d.clockFile())
	}
	if err := startBound(cmd); err != nil {
		d.tb.Fatalf("%s: start: %v", d.Name, err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	d.daemon, d.exited = cmd, exited
}

func (d *Device) clockFile() string { return filepath.Join(d.Dir, "clock") }

// SetClock gives the device's daemon a clock that is ahead of the machine's, and
// says whether something synchronises it. The first time is before Start; what runs
// beside the daemon sees the machine's.
func (d *Device) SetClock(ahead time.Duration, synchronised bool) {
	d.tb.Helper()
	text := ahead.String()
	if synchronised {
		text += " synchronised"
	}
	if err := os.WriteFile(d.clockFile(), []byte(text), 0o644); err != nil {
		d.tb.Fatalf("%s: set its clock: %v", d.Name, err)
	}
	d.clock = true
}

// daemonPID is the daemon itself: nsenter forks it, since it enters a PID
// namespace.
func (d *Device) daemonPID() int {
	pid, err := onlyChild(d.daemon.Process.Pid)
	if err != nil {
		return 0
	}
	return pid
}

func (d *Device) signal(sig syscall.Signal) {
	d.tb.Helper()
	if pid := d.daemonPID(); pid != 0 {
		if err := syscall.Kill(pid, sig); err != nil {
			d.tb.Fatalf("%s: %v: %v", d.Name, sig, err)
		}
	}
}

// Kill is SIGKILL to the daemon; containers stay. It waits until the daemon is
// gone.
func (d *Device) Kill() {
	d.tb.Helper()
	d.signal(syscall.SIGKILL)
	d.waitExit()
}

// Stop is SIGTERM to the daemon.
func (d *Device) Stop() {
	d.tb.Helper()
	d.signal(syscall.SIGTERM)
	d.waitExit()
}

// Pause and Resume are SIGSTOP and SIGCONT.
func (d *Device) Pause()  { d.tb.Helper(); d.signal(syscall.SIGSTOP) }
func (d *Device) Resume() { d.tb.Helper(); d.signal(syscall.SIGCONT) }

func (d *Device) waitExit() {
	d.tb.Helper()
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		d.tb.Fatalf("%s: the daemon did not end\n%s", d.Name, d.LogTail())
	}
}

// Reboot is a power cycle: all processes, mounts, links and the run-dir are
// gone, the data-dir is as the daemon left it. The daemon is started again.
func (d *Device) Reboot(extra ...string) {
	d.tb.Helper()
	d.PowerOff()
	d.powerOn()
	d.Start(extra...)
}

// PowerOff cuts the power.
func (d *Device) PowerOff() {
	d.tb.Helper()
	d.m.halt()
	if d.sw != nil {
		d.sw.unplugGone(d.m.port)
	}
	if err := d.m.removeCgroups(); err != nil {
		d.tb.Errorf("%s: cgroups after power-off: %v", d.Name, err)
	}
}

func (d *Device) discard() {
	if d.frozen {
		d.Thaw()
	}
	d.PowerOff()
	if d.loop != "" {
		if out, err := exec.Command("umount", d.DataDir()).CombinedOutput(); err != nil {
			d.tb.Errorf("%s: unmount its disk: %v %s", d.Name, err, out)
		}
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.tb.Errorf("%s: %v", d.Name, err)
	}
}

// Exited reports whether the daemon has ended, and its exit code.
func (d *Device) Exited() (code int, ended bool) {
	select {
	case <-d.exited:
		return d.daemon.ProcessState.ExitCode(), true
	default:
		return 0, false
	}
}

// LogTail is the end of the daemon's output.
func (d *Device) LogTail() string {
	data, err := os.ReadFile(filepath.Join(d.Dir, "edged.log"))
	if err != nil {
		return err.Error()
	}
	if len(data) > 8192 {
		data = data[len(data)-8192:]
	}
	return string(data)
}

// Command runs argv inside the device, with KUBECONFIG set.
func (d *Device) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := d.m.command(ctx, argv...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.Kubeconfig())
	return cmd
}

// Run runs argv inside the device and returns its standard output.
func (d *Device) Run(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := d.Command(ctx, argv...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Kubectl runs kubectl against the device's API, with stdin if not "".
func (d *Device) Kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := d.Command(ctx, append([]string{Kubectl()}, args...)...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String() + errOut.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// MustKubectl is Kubectl that fails the test.
func (d *Device) MustKubectl(stdin string, args ...string) string {
	d.tb.Helper()
	out, err := d.Kubectl(stdin, args...)
	if err != nil {
		d.tb.Fatalf("%s: %v\n%s", d.Name, err, d.LogTail())
	}
	return out
}

// Edged runs a subcommand of edged inside the device.
func (d *Device) Edged(args ...string) (string, error) {
	return d.Run(append([]string{Edged()}, args...)...)
}

// Dial connects from inside the device.
func (d *Device) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.m.dial(ctx, network, addr)
}

// Listen listens inside the device.
func (d *Device) Listen(network, addr string) (l net.Listener, err error) {
	err = d.m.inNetNS(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket is Listen for packets.
func (d *Device) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = d.m.inNetNS(func() error {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// RESTConfig is the administrator's access to this device's API.
func (d *Device) RESTConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", d.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.Dial, cfg.QPS, cfg.Burst = d.Dial, 1000, 1000
	return cfg, nil
}

// Client is client-go for the device's API.
func (d *Device) Client() kubernetes.Interface {
	d.tb.Helper()
	cfg, err := d.RESTConfig()
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		d.tb.Fatalf("%s: %v", d.Name, err)
	}
	return c
}

// WaitReady waits until /readyz answers 200.
func (d *Device) WaitReady() {
	d.tb.Helper()
	d.Eventually(readyWithin, "ready", func() error {
		if code, ended := d.Exited(); ended {
			d.tb.Fatalf("%s: the daemon ended with code %d\n%s", d.Name, code, d.LogTail())
		}
		return d.Ready()
	})
}

// Stacks ends the daemon with SIGQUIT and returns its whole output, of which the
// stacks of its goroutines are the end.
func (d *Device) Stacks() string {
	d.tb.Helper()
	d.signal(syscall.SIGQUIT)
	d.waitExit()
	data, err := os.ReadFile(filepath.Join(d.Dir, "edged.log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Ready asks /readyz once, trusting the CA in the kubeconfig.
func (d *Device) Ready() error {
	cfg, err := clientcmd.LoadFromFile(d.Kubeconfig())
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, c := range cfg.Clusters {
		pool.AppendCertsFromPEM(c.CertificateAuthorityData)
	}
	tr := &http.Transport{DialContext: d.Dial, TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 5 * time.Second}
	resp, err := c.Get("https://127.0.0.1:6443/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s: %s", resp.Status, body)
	}
	return nil
}

// Eventually calls f until it returns nil, and fails the test with its last
// error after the time is up.
func (d *Device) Eventually(within time.Duration, what string, f func() error) {
	d.tb.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("%s: not %s within %v: %v\n%s", d.Name, what, within, err, d.LogTail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}
