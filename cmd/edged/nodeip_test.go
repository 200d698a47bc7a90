package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDefaultRouteLink(t *testing.T) {
	const header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	for name, c := range map[string]struct{ table, want string }{
		"none":         {header, ""},
		"only a link":  {header + "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n", ""},
		"one":          {header + "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", "eth0"},
		"least metric": {header + "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\neth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", "eth0"},
		"garbage":      {"x\n\ny z\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "route")
		if err := os.WriteFile(path, []byte(c.table), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := defaultRouteLink(path); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
