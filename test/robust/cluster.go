package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	members = 3
	// diskBytes is a member's disk where disks get full: etcd sets two log
	// segments of 64 MB aside.
	diskBytes = 256 << 20
	// patience bounds waits for a state: a loaded machine is no failure.
	patience = 60 * time.Second
)

// settle makes the namespaces of this process a place for members: a /proc and a
// /run of their own, and a bridge with an address for the clients.
func settle() error {
	for _, c := range []string{
		"mount --make-rprivate /",
		"mount -t proc proc /proc",
		"mount -t tmpfs tmpfs /run",
		"ip link set lo up",
		"ip link add br0 type bridge",
		"ip addr add 10.98.0.254/24 dev br0",
		"ip link set br0 up",
	} {
		if err := command(c); err != nil {
			return err
		}
	}
	return nil
}

func command(line string) error {
	args := strings.Fields(line)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// commands carries out lines and goes on after one that fails.
func commands(lines ...string) error {
	var errs []error
	for _, l := range lines {
		errs = append(errs, command(l))
	}
	return errors.Join(errs...)
}

// cluster is three members, each in a network namespace of its own.
type cluster struct {
	bin, dir string
	plain    bool // bin is edged, which has the store as a subcommand
	disks    bool
	flags    []string
	all      []*member
}

// member is one server, which may be started many times.
type member struct {
	c       *cluster
	i       int
	state   string // --initial-cluster-state
	initial string // --initial-cluster
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd is over
	log     *os.File
}

func (m *member) name() string     { return fmt.Sprintf("m%d", m.i) }
func (m *member) addr() string     { return fmt.Sprintf("10.98.0.%d", m.i+1) }
func (m *member) mac() string      { return fmt.Sprintf("02:ed:9e:d0:00:%02x", m.i+1) }
func (m *member) client() string   { return "http://" + m.addr() + ":2379" }
func (m *member) peer() string     { return "http://" + m.addr() + ":2380" }
func (m *member) dir() string      { return filepath.Join(m.c.dir, m.name()) }
func (m *member) data() string     { return filepath.Join(m.dir(), "data") }
func (m *member) endpoint() string { return m.addr() + ":2379" }

// newCluster starts three members in dir and waits until they answer.
func newCluster(ctx context.Context, bin, dir string, disks bool, flags ...string) (*cluster, error) {
	c := &cluster{bin: bin, dir: dir, disks: disks, flags: flags}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c.plain = exec.CommandContext(ctx, bin, "store", "--version").Run() == nil
	var founders []string
	for i := range members {
		m := &member{c: c, i: i, state: "new"}
		c.all = append(c.all, m)
		founders = append(founders, m.name()+"="+m.peer())
	}
	for _, m := range c.all {
		m.initial = strings.Join(founders, ",")
		if err := m.place(); err != nil {
			return c, err
		}
		if err := m.start(); err != nil {
			return c, err
		}
	}
	return c, c.waitAll(ctx)
}

// place makes the member's namespace, its link to the bridge and its disk.
func (m *member) place() error {
	n := m.name()
	for _, c := range []string{
		"ip netns add " + n,
		fmt.Sprintf("ip link add %s-br type veth peer name eth0 address %s netns %s", n, m.mac(), n),
		"ip link set " + n + "-br master br0 up",
		"ip -n " + n + " link set lo up",
		"ip -n " + n + " addr add " + m.addr() + "/24 dev eth0",
		"ip -n " + n + " link set eth0 up",
	} {
		if err := command(c); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(m.dir(), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(m.dir()+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	m.log = log
	if !m.c.disks {
		return nil
	}
	image := m.dir() + ".img"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, diskBytes); err != nil {
		return err
	}
	if err := command("mkfs.ext4 -q -m 0 -O ^has_journal " + image); err != nil {
		return err
	}
	return command("mount -o loop " + image + " " + m.dir())
}

// close ends the members and removes what place made. What is left of it would
// end with this process anyway.
func (c *cluster) close() error {
	var errs []error
	for _, m := range c.all {
		m.kill()
		if m.log != nil {
			errs = append(errs, m.log.Close())
		}
		if c.disks {
			errs = append(errs, command("umount "+m.dir()))
		}
		// The link first: a namespace may outlive its name by a moment.
		errs = append(errs, commands("ip link del "+m.name()+"-br", "ip netns del "+m.name()))
	}
	return errors.Join(errs...)
}

func (m *member) start() error {
	args := []string{"netns", "exec", m.name(), m.c.bin}
	if m.c.plain {
		args = append(args, "store")
	}
	args = append(args,
		"--name="+m.name(), "--data-dir="+m.data(),
		"--listen-client-urls="+m.client(), "--advertise-client-urls="+m.client(),
		"--listen-peer-urls="+m.peer(), "--initial-advertise-peer-urls="+m.peer(),
		"--initial-cluster="+m.initial, "--initial-cluster-state="+m.state, "--initial-cluster-token=robust",
		"--heartbeat-interval=100", "--election-timeout=1000", "--watch-progress-notify-interval=100ms", "--log-level=info")
	m.cmd = exec.Command("ip", append(args, m.c.flags...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.name(), err)
	}
	ended := make(chan struct{})
	m.ended = ended
	go func(cmd *exec.Cmd) {
		defer close(ended)
		err := cmd.Wait()
		fmt.Fprintf(m.log, "%s ended: %v\n", m.name(), err)
	}(m.cmd)
	return nil
}

func (m *member) signal(s syscall.Signal) {
	if m.cmd != nil {
		// It may have ended by itself, which is for the checkers to judge.
		_ = m.cmd.Process.Signal(s)
	}
}

func (m *member) kill() {
	if m.cmd == nil {
		return
	}
	m.signal(syscall.SIGKILL)
	<-m.ended
}

// revive starts a member that is not running.
func (m *member) revive() error {
	select {
	case <-m.ended:
		return m.start()
	default:
		return nil
	}
}

func (c *cluster) endpoints() []string {
	var out []string
	for _, m := range c.all {
		out = append(out, m.endpoint())
	}
	return out
}

// dial makes a client of some members that the checkers do not see.
func dial(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: time.Second})
}

// until repeats f until it succeeds, for at most patience.
func until(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 2*time.Second)
		err := f(try)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitAll waits until every member answers a read that a quorum confirms.
func (c *cluster) waitAll(ctx context.Context) error {
	for _, m := range c.all {
		cl, err := dial(m.endpoint())
		if err != nil {
			return err
		}
		err = until(ctx, m.name()+" does not answer", func(ctx context.Context) error {
			_, err := cl.Get(ctx, "ready?")
			return err
		})
		if err := errors.Join(err, cl.Close()); err != nil {
			return err
		}
	}
	return nil
}

// leader is the member that leads, as it says itself.
func (c *cluster) leader(ctx context.Context) (*member, error) {
	cl, err := dial(c.endpoints()...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var found *member
	err = until(ctx, "nobody leads", func(ctx context.Context) error {
		for _, m := range c.all {
			st, err := cl.Status(ctx, m.endpoint())
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				found = m
				return nil
			}
		}
		return errors.New("no member says that it does")
	})
	return found, err
}

// others are all members but m.
func (m *member) others() []*member {
	var out []*member
	for _, o := range m.c.all {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}

// deafen lets nothing from a member reach another: it sends to an address on the
// link that nobody has.
func deafen(from, to *member) string {
	return fmt.Sprintf("ip -n %s neigh replace %s lladdr 02:ed:9e:d0:ff:ff nud permanent dev eth0", from.name(), to.addr())
}

// hear undoes deafen.
func hear(from, to *member) string {
	return fmt.Sprintf("ip -n %s neigh replace %s lladdr %s nud permanent dev eth0", from.name(), to.addr(), to.mac())
}
