package bridge_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"edged/internal/netns/netnstest"
)

// BenchmarkThroughput compares TCP between two Pods with TCP over a bare veth
// pair, in turns, so that a busy machine slows down both. The budget is 0.95.
func BenchmarkThroughput(b *testing.B) {
	br := open(b, config(b, v4))
	one, two := netnstest.New(b), netnstest.New(b)
	attach(b, br, "pod-1", one)
	bridged := attach(b, br, "pod-2", two).IPs[0].String()
	left, right := netnstest.New(b), netnstest.New(b)
	left.Run(b, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	left.Run(b, "ip", "link", "set", "v1", "netns", right.Path)
	for _, end := range []struct {
		ns         netnstest.NS
		link, addr string
	}{{left, "v0", "192.0.2.1/24"}, {right, "v1", "192.0.2.2/24"}} {
		end.ns.Run(b, "ip", "addr", "add", end.addr, "dev", end.link)
		end.ns.Run(b, "ip", "link", "set", end.link, "up")
	}
	pods := stream(b, one, two, bridged)
	bare := stream(b, left, right, "192.0.2.2")
	var bridgedBytes, bareBytes float64
	for b.Loop() {
		bareBytes += bare(200 * time.Millisecond)
		bridgedBytes += pods(200 * time.Millisecond)
	}
	b.ReportMetric(bridgedBytes/bareBytes, "of-bare-veth")
	b.ReportMetric(bridgedBytes/(float64(b.N)*0.2)*8/1e9, "Gbit/s")
	b.ReportMetric(0, "ns/op")
}

// stream connects and returns a function that sends for some time and says how
// many bytes per second arrived.
func stream(b *testing.B, from, to netnstest.NS, addr string) func(time.Duration) float64 {
	b.Helper()
	l := to.Listen(b, ":7000")
	c, err := from.Dial("tcp", addr+":7000")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	in, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close() })
	buf, sink := make([]byte, 256<<10), make([]byte, 256<<10)
	return func(d time.Duration) float64 {
		sent := make(chan int64, 1)
		go func() {
			var n int64
			for end := time.Now().Add(d); time.Now().Before(end); {
				k, err := c.Write(buf)
				n += int64(k)
				if err != nil {
					b.Error(err)
					break
				}
			}
			sent <- n
		}()
		start, got := time.Now(), int64(0)
		total := int64(-1)
		for total < 0 || got < total {
			if err := in.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				b.Fatal(err)
			}
			k, err := in.Read(sink)
			got += int64(k)
			if ne, ok := err.(net.Error); err != nil && (!ok || !ne.Timeout()) && err != io.EOF {
				b.Fatal(err)
			}
			select {
			case total = <-sent:
			default:
			}
		}
		return float64(got) / time.Since(start).Seconds() * d.Seconds()
	}
}

// BenchmarkAttach is the bridge's share of the start of a Pod.
func BenchmarkAttach(b *testing.B) {
	// Wide: addresses rest between uses.
	br := open(b, config(b, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}))
	ns := netnstest.New(b)
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("pod-", i%200)
		attach(b, br, id, ns)
		b.StopTimer()
		if err := br.Detach(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
