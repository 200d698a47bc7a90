package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"edged/test/harness"
)

// TestTenDevices: ten machines with a daemon each share one link, are apart in
// everything else, and reach each other.
func TestTenDevices(t *testing.T) {
	sw := harness.NewSwitch(t)
	devices := make([]*harness.Device, 10)
	for i := range devices {
		devices[i] = harness.New(t, sw, i+1)
		devices[i].Start()
	}
	for _, d := range devices {
		d.WaitReady()
	}
	for i, d := range devices {
		next := devices[(i+1)%len(devices)]
		d.Eventually(10*time.Second, "connected to "+next.Name, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			conn, err := d.Dial(ctx, "tcp", netip.AddrPortFrom(next.Addr, 6443).String())
			if err != nil {
				return err
			}
			return conn.Close()
		})
		out := d.MustKubectl("", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name} {.items[*].status.addresses[?(@.type==\"InternalIP\")].address}")
		if want := fmt.Sprintf("%s %s", d.Name, d.Addr); out != want {
			t.Errorf("%s: nodes are %q, want %q", d.Name, out, want)
		}
	}
}
