package harness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
)

// Options say what machine to make.
type Options struct {
	Board    string // rpi or amd64
	Machine  string // QEMU's, for rpi: virt if empty, or raspi3b
	MemoryMB int
	Fleet    *Fleet   // the network it is on; nil: one of its own
	Config   string   // edged.yaml
	Preload  []string // archives for the boot partition
	Manifest string   // a file for its folder of manifests
	NBD      bool     // the harness serves the disk
	Offline  bool     // a link that leads nowhere
	// Reachable: what the other devices of a cluster want of it they find on the host at
	// the address that the machine has. One machine at a time.
	Reachable bool
}

// Machine is a machine with a card in it.
type Machine struct {
	t       testing.TB
	o       Options
	dir     string
	card    string
	disk    *Disk  // nil without NBD
	APIPort int    // on a fleet's network known by Fleet.Find
	mac     string // on a fleet's network

	tryboot bool // the next start reads tryboot.txt
	cmd     *exec.Cmd
	done    chan struct{} // closed when QEMU has ended

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced when there is another line
}

const cardBytes = 1 << 30

// New makes a machine; it is off.
func New(t testing.TB, o Options) *Machine {
	t.Helper()
	images := imagesDir(t)
	m := &Machine{t: t, o: o, dir: t.TempDir(), more: make(chan struct{})}
	m.card = filepath.Join(m.dir, "card.img")
	run(t, "cp", "--sparse=always", filepath.Join(images, "edged-"+o.Board+".img"), m.card)
	must(t, os.Truncate(m.card, cardBytes))
	m.configure()
	if o.NBD {
		d, err := ServeDisk(m.card, filepath.Join(m.dir, "nbd"))
		must(t, err)
		m.disk = d
		t.Cleanup(func() { must(t, d.Close()) })
	}
	if o.Board == "amd64" {
		run(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", filepath.Join(m.dir, "vars.fd"))
	}
	if o.Fleet != nil {
		m.mac = o.Fleet.nextMAC()
	} else {
		m.APIPort = freePort(t)
	}
	t.Cleanup(func() {
		m.Cut()
		if t.Failed() {
			t.Logf("the console's last lines:\n%s", strings.Join(m.tail(60), "\n"))
		}
	})
	return m
}

// imagesDir is where images and binaries are; without one there is nothing to test.
func imagesDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("EDGED_IMAGES")
	if dir == "" {
		t.Skip("EDGED_IMAGES does not name a folder of images")
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// configure puts on the card what its owner does: edged.yaml, and archives as a
// person does who opens the card on a computer.
func (m *Machine) configure() {
	m.writeConfig()
	if len(m.o.Preload) > 0 {
		at := m.card + "@@1M"
		run(m.t, "mmd", "-i", at, "::images")
		run(m.t, "mcopy", append(append([]string{"-i", at}, m.o.Preload...), "::images/")...)
	}
	if m.o.Manifest != "" {
		at, path := m.card+"@@1M", filepath.Join(m.dir, "from the card.yaml")
		must(m.t, os.WriteFile(path, []byte(m.o.Manifest), 0o600))
		run(m.t, "mmd", "-i", at, "::manifests")
		run(m.t, "mcopy", "-i", at, path, "::manifests/")
	}
}

// writeConfig writes edged.yaml as `edged flash` does.
func (m *Machine) writeConfig() {
	f, err := os.OpenFile(m.card, os.O_RDWR, 0)
	must(m.t, err)
	defer f.Close()
	boot, v, err := slot.Boot(f, cardBytes)
	must(m.t, err)
	text, err := pid1.PadConfig([]byte(m.o.Config))
	must(m.t, err)
	must(m.t, v.Overwrite(boot, pid1.ConfigName, text))
}

// Boot opens the boot partition, as it is on the card now.
func (m *Machine) Boot() *fat.Volume {
	m.t.Helper()
	var d disk.Device
	if m.disk != nil {
		d = m.disk
	} else {
		f, err := os.OpenFile(m.card, os.O_RDWR, 0)
		must(m.t, err)
		m.t.Cleanup(func() { f.Close() })
		d = f
	}
	_, v, err := slot.Boot(d, cardBytes)
	must(m.t, err)
	return v
}

// damage writes noise over the head of the data partition.
func (m *Machine) damage() {
	m.t.Helper()
	f, err := os.OpenFile(m.card, os.O_RDWR, 0)
	must(m.t, err)
	defer f.Close()
	table, err := disk.Read(f, cardBytes)
	must(m.t, err)
	data := table.Partitions[len(table.Partitions)-1]
	_, err = f.WriteAt(bytes.Repeat([]byte("noise"), 64<<10), data.Start*disk.SectorBytes)
	must(m.t, err)
}

// endWithTest has a program end when the test is killed.
var endWithTest = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

// On starts the machine.
func (m *Machine) On() {
	m.t.Helper()
	args := []string{"-nographic", "-monitor", "none", "-serial", "stdio", "-vga", "none", "-m", strconv.Itoa(m.o.MemoryMB),
		"-qmp", "unix:" + filepath.Join(m.dir, "qmp") + ",server=on,wait=off"}
	if m.o.Fleet != nil {
		args = append(args, "-netdev", m.o.Fleet.netdev("n"))
	} else if m.o.Offline {
		args = append(args, "-netdev", "hubport,id=n,hubid=0")
	} else {
		user := fmt.Sprintf("user,id=n,hostfwd=tcp:127.0.0.1:%d-:6443", m.APIPort)
		if m.o.Reachable {
			for _, port := range []string{"6443", "2380", "10250"} {
				user += ",hostfwd=tcp:" + guestAddress + ":" + port + "-:" + port
			}
		}
		args = append(args, "-netdev", user)
	}
	program := "qemu-system-x86_64"
	switch {
	case m.o.Machine == "raspi3b":
		// Its processors, card and USB network are those of the board.
		program = "qemu-system-aarch64"
		kernel, cmdline := m.firmware("ttyAMA1")
		// One thread takes turns for its four processors: one each, on a host with less,
		// wait for each other so long that the kernel hangs.
		args = append(args, "-M", "raspi3b", "-icount", "shift=3", "-no-reboot", "-kernel", kernel, "-append", cmdline, "-dtb", filepath.Join(m.dir, "board.dtb"),
			"-drive", "if=sd,format=raw,file="+m.card, "-device", "usb-net,netdev=n")
	case m.o.Board == "rpi":
		program = "qemu-system-aarch64"
		kernel, cmdline := m.firmware("ttyAMA0")
		args = append(append(args, m.virtio()...), "-M", "virt", "-cpu", "cortex-a72", "-no-reboot", "-kernel", kernel, "-append", cmdline)
	default:
		args = append(append(args, m.virtio()...), "-M", "q35", "-cpu", "qemu64", "-device", "virtio-rng-pci",
			"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+filepath.Join(m.dir, "vars.fd"))
	}
	m.cmd = exec.Command(program, args...)
	m.cmd.SysProcAttr = endWithTest
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	out, err := m.cmd.StdoutPipe()
	must(m.t, err)
	must(m.t, m.cmd.Start())
	done := make(chan struct{})
	m.done = done
	go func() {
		defer close(done)
		m.read(out)
		if err := m.cmd.Wait(); err != nil && stderr.Len() > 0 {
			m.add("qemu: " + err.Error() + ": " + stderr.String())
		}
	}()
}

// virtio are processors, disk and network of a virtual machine.
func (m *Machine) virtio() []string {
	disk := "driver=file,node-name=d,filename=" + m.card
	if m.disk != nil {
		disk = "driver=nbd,node-name=d,server.type=unix,server.path=" + m.disk.Socket + ",export=disk"
	}
	network := "virtio-net-pci,netdev=n"
	if m.mac != "" {
		network += ",mac=" + m.mac
	}
	return []string{"-smp", strconv.Itoa(min(2, runtime.NumCPU())), "-blockdev", disk, "-device", "virtio-blk-pci,drive=d", "-device", network}
}

// firmware does what a Pi's does: the slot of config.txt, or once of
// tryboot.txt; serial is what the board's console is called here.
func (m *Machine) firmware(serial string) (kernel, cmdline string) {
	v := m.Boot()
	name := "config.txt"
	if m.tryboot {
		name = "tryboot.txt"
	}
	m.tryboot = false
	text, err := v.ReadFile(name)
	must(m.t, err)
	prefix := regexp.MustCompile(`(?m)^os_prefix=(.*)$`).FindStringSubmatch(string(text))
	if prefix == nil {
		m.t.Fatalf("%s has no os_prefix:\n%s", name, text)
	}
	data, err := v.ReadFile(prefix[1] + "vmlinuz")
	must(m.t, err)
	kernel = filepath.Join(m.dir, "vmlinuz")
	must(m.t, os.WriteFile(kernel, data, 0o600))
	tree, err := v.ReadFile(prefix[1] + "bcm2710-rpi-3-b.dtb")
	must(m.t, err)
	must(m.t, os.WriteFile(filepath.Join(m.dir, "board.dtb"), tree, 0o600))
	line, err := v.ReadFile(prefix[1] + "cmdline.txt")
	must(m.t, err)
	// A Pi's device tree turns the memory controller off; the board's serial port
	// has another name here, and no watchdog.
	const options = "coherent_pool=1M 8250.nr_uarts=1 cgroup_disable=memory "
	return kernel, options + strings.ReplaceAll(strings.TrimSpace(string(line)), "serial0", serial) + " edged.watchdog=off"
}

func (m *Machine) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 1<<20), 1<<20)
	for sc.Scan() {
		m.add(strings.TrimRight(sc.Text(), "\r"))
	}
}

func (m *Machine) add(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, line)
	close(m.more)
	m.more = make(chan struct{})
}

func (m *Machine) tail(n int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.lines[max(0, len(m.lines)-n):]...)
}

// Mark is a place on the console, for WaitFor.
func (m *Machine) Mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lines)
}

// WaitFor returns the first line from mark on that matches. A machine that has ended
// says nothing more.
func (m *Machine) WaitFor(mark int, pattern string, limit time.Duration) []string {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(limit)
	for ended := false; ; {
		m.mu.Lock()
		for ; mark < len(m.lines); mark++ {
			if f := re.FindStringSubmatch(m.lines[mark]); f != nil {
				m.mu.Unlock()
				return f
			}
		}
		more := m.more
		m.mu.Unlock()
		if ended {
			m.t.Fatalf("the machine ended and its console did not say %q", pattern)
		}
		select {
		case <-more:
		case <-m.done:
			ended = true
		case <-deadline:
			m.t.Fatalf("the console did not say %q in %v", pattern, limit)
		}
	}
}

// Has tells whether the console has said something.
func (m *Machine) Has(pattern string) bool { return m.HasSince(0, pattern) }

// HasSince tells whether the console has said something since a mark.
func (m *Machine) HasSince(mark int, pattern string) bool {
	re := regexp.MustCompile(pattern)
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.lines[mark:], re.MatchString)
}

// count tells how many lines match.
func (m *Machine) count(pattern string) (n int) {
	re := regexp.MustCompile(pattern)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		if re.MatchString(l) {
			n++
		}
	}
	return n
}

// Cut takes the power away. With NBD, what was not flushed is lost in part.
func (m *Machine) Cut() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill() // it may have ended by itself
	<-m.done
	m.cmd = nil
	if m.disk != nil {
		must(m.t, m.disk.Cut())
	}
}

// PressPower presses the power button.
func (m *Machine) PressPower() {
	m.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(m.dir, "qmp"))
	must(m.t, err)
	defer conn.Close()
	must(m.t, conn.SetDeadline(time.Now().Add(time.Minute)))
	answers := json.NewDecoder(conn)
	answer := func() {
		m.t.Helper()
		var a struct{ Error json.RawMessage }
		must(m.t, answers.Decode(&a))
		if a.Error != nil {
			m.t.Fatalf("QEMU: %s", a.Error)
		}
	}
	answer() // its greeting
	for _, command := range []string{"qmp_capabilities", "system_powerdown"} {
		_, err := fmt.Fprintf(conn, "{\"execute\": %q}\n", command)
		must(m.t, err)
		answer()
	}
}

// Restarted waits until a Pi has restarted itself and starts it as its firmware
// would.
func (m *Machine) Restarted(mark int, limit time.Duration) {
	m.t.Helper()
	// The kernel may write on the same line.
	m.tryboot = m.WaitFor(mark, `edged-init: reboot ?(0 tryboot)?`, limit)[1] != ""
	m.Ended(limit)
	m.On()
}

// Ended waits until a machine has powered itself off, or a Pi has restarted itself,
// its kernel having panicked maybe; it is off then.
func (m *Machine) Ended(limit time.Duration) {
	m.t.Helper()
	select {
	case <-m.done:
	case <-time.After(limit):
		m.t.Fatal("the machine did not end")
	}
	m.cmd = nil
}
