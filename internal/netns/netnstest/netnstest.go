// Package netnstest lets tests send real packets without touching the machine:
// the whole test binary runs in a network namespace of its own, and further
// namespaces stand for Pods, other devices and the outside.
//
// Tests call Main from TestMain. Root is needed; without it the tests do not
// run and say so.
//
// May be imported by tests only.
package netnstest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"edged/internal/netns"
)

const childEnv = "EDGED_NETNSTEST_CHILD"

// dialTimeout bounds one attempt: long enough for a loaded machine, short
// enough to notice that packets vanish.
const dialTimeout = 5 * time.Second

// Main runs the tests in a network and mount namespace of their own, which go
// with the process and everything made in them.
func Main(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("SKIP: network namespaces need root")
		os.Exit(0)
	}
	if os.Getenv(childEnv) == "" {
		os.Exit(reexec())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println("netnstest: making mounts private:", err)
		os.Exit(1)
	}
	var err error
	if host, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		fmt.Println("netnstest:", err)
		os.Exit(1)
	}
	if err := setUp("lo"); err != nil {
		fmt.Println("netnstest: setting lo up:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Println("netnstest:", err)
		return 1
	}
	return 0
}

// setUp is `ip link set <name> up` without a netlink library.
func setUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// NS is a namespace of a test.
type NS struct{ Path string }

// New makes a namespace that goes with the test.
func New(t testing.TB) NS {
	t.Helper()
	ns := NS{filepath.Join(t.TempDir(), "netns")}
	if err := netns.Create(ns.Path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(ns.Path); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// Do runs fn in the namespace.
func (n NS) Do(t testing.TB, fn func() error) {
	t.Helper()
	if err := netns.Do(n.Path, fn); err != nil {
		t.Fatal(err)
	}
}

// Run runs a command in the namespace and returns what it printed.
func (n NS) Run(t testing.TB, args ...string) string {
	t.Helper()
	var out []byte
	n.Do(t, func() (err error) {
		if out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			err = fmt.Errorf("%v: %w\n%s", args, err, out)
		}
		return err
	})
	return string(out)
}

// Dial connects from inside the namespace.
func (n NS) Dial(network, addr string) (net.Conn, error) {
	return n.DialFrom(network, "", addr)
}

// DialFrom connects from a local address (host:port, or empty).
func (n NS) DialFrom(network, local, addr string) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	if local != "" {
		if network == "udp" {
			d.LocalAddr, err = net.ResolveUDPAddr(network, local)
		} else {
			d.LocalAddr, err = net.ResolveTCPAddr(network, local)
		}
		if err != nil {
			return nil, err
		}
	}
	err = netns.Do(n.Path, func() error {
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace until the test ends.
func (n NS) Listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	n.Do(t, func() (err error) {
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// ListenPacket opens a UDP socket inside the namespace until the test ends.
func (n NS) ListenPacket(t testing.TB, addr string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	n.Do(t, func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// Serve answers every TCP connection and every UDP packet at addr (host:port)
// with "<name> <address of the client as seen>\n", until the test ends.
func (n NS) Serve(t testing.TB, name, addr string) {
	t.Helper()
	l, p := n.Listen(t, addr), n.ListenPacket(t, addr)
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
			c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 2048)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(packetTo{p, from}, "%s %s\n", name, from)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		p.Close()
		<-done
		<-done
	})
}

type packetTo struct {
	net.PacketConn
	to net.Addr
}

func (p packetTo) Write(b []byte) (int, error) { return p.WriteTo(b, p.to) }

// Ask connects to a Serve and returns the server's name and the client's
// address as the server saw it.
func (n NS) Ask(network, addr string) (name, client string, err error) {
	return n.AskFrom(network, "", addr)
}

// AskFrom is Ask from a local address (host:port, or empty).
func (n NS) AskFrom(network, local, addr string) (name, client string, err error) {
	c, err := n.DialFrom(network, local, addr)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return "", "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", "", err
		}
	}
	// Buffered: a UDP packet read in parts loses the rest.
	_, err = fmt.Fscan(bufio.NewReader(c), &name, &client)
	return name, client, err
}

// Ping sends one ICMP echo request and waits for the answer.
func (n NS) Ping(to string) error {
	ip := net.ParseIP(to)
	network, proto := "ip4:icmp", 1
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if ip.To4() == nil {
		network, proto, kind = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
	}
	return netns.Do(n.Path, func() error {
		c, err := net.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		id := os.Getpid() & 0xffff
		m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("edged")}}
		data, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
			return err
		}
		if _, err := c.Write(data); err != nil {
			return err
		}
		buf := make([]byte, 1500)
		for {
			// ReadFrom, unlike Read, takes off the IPv4 header.
			k, _, err := c.(*net.IPConn).ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("ping %s: %w", to, err)
			}
			reply, err := icmp.ParseMessage(proto, buf[:k])
			if err != nil {
				continue
			}
			if e, ok := reply.Body.(*icmp.Echo); ok && e.ID == id && reply.Type != kind {
				return nil
			}
		}
	})
}

// host is kept open by Main: /proc/self/ns/net is the namespace of the process's
// first thread, which may be in another one for a while.
var host *os.File

// Host is the namespace of the test binary itself: the device.
func Host() NS { return NS{fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), host.Fd())} }

// BridgeNF sets, until the test ends, whether the device's kernel shows bridged
// frames to the packet filter ("1", as docker has it) or not ("0"). A kernel
// without br_netfilter never does.
func BridgeNF(t testing.TB, value string) {
	t.Helper()
	for _, name := range []string{"iptables", "ip6tables"} {
		file := "/proc/sys/net/bridge/bridge-nf-call-" + name
		old, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, old, 0o644); err != nil {
				t.Error(err)
			}
		})
	}
}
