package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// network measures the data path by itself, in namespaces: what a device adds
// to it would only be noise.
func (b *bench) network() error {
	update, err := metric("./net/proxy", "Update", "50x", "ms/update")
	if err != nil {
		return err
	}
	b.add("Service rule update, 1000 Services x 10 endpoints, one changed", "10 ms", "%.1f ms", update)
	share, err := metric("./net/bridge", "Throughput", "15x", "of-bare-veth")
	if err != nil {
		return err
	}
	b.add("Pod-to-Pod throughput across the bridge, bare veth = 1", "0.95", "%.2f", share)
	return nil
}

// metric runs a Go benchmark and returns the number before a unit.
func metric(pkg, name, times, unit string) (float64, error) {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark"+name+"$", "-benchtime", times, pkg).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("benchmark %s of %s: %w\n%s", name, pkg, err, out)
	}
	fields := strings.Fields(string(out))
	for i := 1; i < len(fields); i++ {
		if fields[i] == unit {
			return strconv.ParseFloat(fields[i-1], 64)
		}
	}
	return 0, fmt.Errorf("benchmark %s of %s printed no %s:\n%s", name, pkg, unit, out)
}
