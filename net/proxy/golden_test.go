package proxy_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"edged/net/nft"
	"edged/net/proxy"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files; commit only a difference you can explain")

// network is the device of all tests.
func network() proxy.Network {
	return proxy.Network{
		NodeName:     "here",
		Bridge:       "edged0",
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.42.3.0/24"), netip.MustParsePrefix("fd42:0:0:3::/64")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		Reserved:     []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		Balance:      func(_ bool, n uint32) nft.Value { return nft.Random(n) },
	}
}

// TestTranslate compares the rules for testdata/<name>.yaml with <name>.nft.
// What does not depend on Services is in empty.nft and left out of the others.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	empty := proxy.Translate(network(), proxy.State{}).String()
	golden(t, "testdata/empty.nft", empty)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			got := proxy.Translate(network(), readState(t, file)).String()
			golden(t, strings.TrimSuffix(file, ".yaml")+".nft", without(got, empty))
		})
	}
}

// without drops the blocks that are the same in both.
func without(text, common string) string {
	skip := map[string]bool{}
	for b := range strings.SplitSeq(common, "\n\n") {
		skip[strings.TrimSpace(b)] = true
	}
	var out []string
	for b := range strings.SplitSeq(text, "\n\n") {
		if !skip[strings.TrimSpace(b)] {
			out = append(out, strings.Trim(b, "\n"))
		}
	}
	return strings.Join(out, "\n\n") + "\n"
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got\n%s", file, got)
	}
}

func readState(t *testing.T, file string) proxy.State {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	state := proxy.State{Zone: "attic"}
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Service":
			svc := &corev1.Service{}
			if err := yaml.UnmarshalStrict(doc, svc); err != nil {
				t.Fatal(err)
			}
			state.Services = append(state.Services, svc)
		case "EndpointSlice":
			s := &discoveryv1.EndpointSlice{}
			if err := yaml.UnmarshalStrict(doc, s); err != nil {
				t.Fatal(err)
			}
			state.Slices = append(state.Slices, s)
		case "HostPort":
			var hp struct {
				Kind string
				proxy.HostPort
			}
			if err := yaml.UnmarshalStrict(doc, &hp); err != nil {
				t.Fatal(err)
			}
			state.HostPorts = append(state.HostPorts, hp.HostPort)
		default:
			t.Fatalf("%s: kind %q", file, kind.Kind)
		}
	}
	return state
}
