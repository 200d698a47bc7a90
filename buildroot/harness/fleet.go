package harness

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fleet is a network with a router: machines on it reach each other, multicast
// included, and the test reaches the API of each. The test is the switch; the
// router is a QEMU without a machine, DHCP server included. A multicast group as
// the wire will not do: that router answers whatever it sees, refusing in the
// name of machines what was meant for them.
type Fleet struct {
	t     testing.TB
	ports map[int]int // of the API, by the last byte of the machine's address
	macs  int

	mu     sync.Mutex
	plugs  []*plug
	places map[[6]byte]*plug // where an Ethernet address was last seen
}

// plug is a socket of the switch, with QEMU's at the other end.
type plug struct {
	conn *net.UDPConn
	peer netip.AddrPort
}

// firstLease is what the router's DHCP gives first.
const firstLease = 15

// NewFleet makes a network for at most n machines.
func NewFleet(t testing.TB, n int) *Fleet {
	t.Helper()
	f := &Fleet{t: t, ports: map[int]int{}, places: map[[6]byte]*plug{}}
	user := "user,id=u"
	for i := range n {
		f.ports[firstLease+i] = freePort(t)
		user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-10.0.2.%d:6443", f.ports[firstLease+i], firstLease+i)
	}
	router := exec.Command("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "none",
		"-netdev", user, "-netdev", f.netdev("s"), "-netdev", "hubport,id=a,hubid=0,netdev=u", "-netdev", "hubport,id=b,hubid=0,netdev=s")
	router.SysProcAttr = endWithTest
	var stderr bytes.Buffer
	router.Stderr = &stderr
	must(t, router.Start())
	t.Cleanup(func() {
		_ = router.Process.Kill() // it may have ended by itself
		_ = router.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("the router: %s", stderr.String())
		}
	})
	return f
}

// netdev plugs another QEMU in.
func (f *Fleet) netdev(id string) string {
	f.t.Helper()
	loopback := net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	free, err := net.ListenUDP("udp4", &loopback)
	must(f.t, err)
	defer free.Close()
	conn, err := net.ListenUDP("udp4", &loopback)
	must(f.t, err)
	p := &plug{conn: conn, peer: free.LocalAddr().(*net.UDPAddr).AddrPort()}
	f.mu.Lock()
	f.plugs = append(f.plugs, p)
	f.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.serve(p)
	}()
	f.t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return fmt.Sprintf("socket,id=%s,udp=%s,localaddr=%s", id, conn.LocalAddr(), p.peer)
}

// serve passes on what comes from p, until p is closed.
func (f *Fleet) serve(p *plug) {
	frame := make([]byte, 1<<16)
	for {
		n, err := p.conn.Read(frame)
		if err != nil {
			return
		}
		if n < 14 { // no Ethernet header
			continue
		}
		f.mu.Lock()
		f.places[[6]byte(frame[6:])] = p
		to := f.plugs
		if known := f.places[[6]byte(frame)]; known != nil {
			to = []*plug{known}
		}
		f.mu.Unlock()
		for _, q := range to {
			if q != p {
				_, _ = q.conn.WriteToUDPAddrPort(frame[:n], q.peer) // a wire may lose it
			}
		}
	}
}

func (f *Fleet) nextMAC() string {
	f.macs++
	return fmt.Sprintf("52:54:00:ed:00:%02x", f.macs)
}

// Find learns a machine's address from its console, and so the port of its API.
func (f *Fleet) Find(m *Machine, limit time.Duration) {
	f.t.Helper()
	last := m.WaitFor(0, `edged-init: .*\b10\.0\.2\.(\d+)/`, limit)[1]
	n, err := strconv.Atoi(last)
	must(f.t, err)
	if m.APIPort = f.ports[n]; m.APIPort == 0 {
		f.t.Fatalf("a machine has the address 10.0.2.%d, and nothing leads there", n)
	}
}

// Name is a machine's Node, from its console.
func (m *Machine) Name(limit time.Duration) string {
	m.t.Helper()
	return strings.TrimSpace(m.WaitFor(0, `edged-init: host name (\S+)`, limit)[1])
}
