package main

import (
	"net/http/httptest"
	"slices"
	"testing"
)

// TestKubeletSubresources: who may do what at the kubelet's port is asked in
// upstream's words.
func TestKubeletSubresources(t *testing.T) {
	for path, want := range map[string][]string{
		"/metrics/resource": {"metrics"}, "/metrics": {"metrics"}, "/logs/a.log": {"log"}, "/logs": {"log"}, "/logsx": {"proxy"},
		"/stats/summary": {"stats"}, "/pods": {"pods", "proxy"}, "/healthz": {"healthz", "proxy"}, "/exec/ns/p/c": {"proxy"},
		"/runningpods/": {"pods", "proxy"}, "/configz": {"configz", "proxy"},
	} {
		if got := kubeletSubresources(httptest.NewRequest("GET", path, nil)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
}
