package main

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestNodeUsed(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"stat":    "cpu  100 20 30 5000 70 4 5 6 0 0\ncpu0 1 2 3\n",
		"meminfo": "MemTotal:        1000 kB\nMemFree:          300 kB\nMemAvailable:     600 kB\nInactive(file):   150 kB\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(1, 0)
	got, err := nodeUsed(dir, now)
	if want := (used{now, 1650 * time.Millisecond, 550 << 10}); err != nil || got != want {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
}

// TestKubeletSubresources: who may do what at the kubelet's port is asked in
// upstream's words.
func TestKubeletSubresources(t *testing.T) {
	for path, want := range map[string][]string{
		"/metrics/resource": {"metrics"}, "/metrics": {"metrics"}, "/logs/a.log": {"log"}, "/logs": {"log"}, "/logsx": {"proxy"},
		"/stats/summary": {"stats"}, "/pods": {"pods", "proxy"}, "/healthz": {"healthz", "proxy"}, "/exec/ns/p/c": {"proxy"},
	} {
		if got := kubeletSubresources(httptest.NewRequest("GET", path, nil)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}
