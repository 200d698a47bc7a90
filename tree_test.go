package edged

import (
	"bytes"
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// layers is the import graph of ARCHITECTURE.md: a package may import a
// package of ours only if a row for it (the first whose pattern matches) lists
// a pattern that matches the other one. Patterns are package paths below the
// module; a trailing /... takes in everything below.
var layers = []struct {
	pkg string
	may []string
}{
	{"cmd/edged/...", []string{"..."}},
	{"internal/netns/netnstest", []string{"internal/netns"}},
	{"internal/...", nil},
	{"cluster/identity", []string{"internal/..."}},
	{"runtime/engine/...", []string{"internal/...", "runtime/engine/..."}},
	{"net/bridge", []string{"internal/..."}},
	{"net/mesh", []string{"internal/...", "net/nft", "apiserver/registry"}},
	{"net/nft", []string{"internal/..."}},
	{"net/cniplugin", []string{"internal/...", "net/bridge", "net/nft"}},
	{"raftstore/...", []string{"raftstore/...", "internal/..."}},
	{"apiserver/codec/...", []string{"apiserver/codec/...", "internal/..."}},
	{"apiserver/objcache", []string{"apiserver/codec/...", "raftstore", "internal/..."}},
	{"apiserver/registry/registrytest", []string{"apiserver/kinds", "apiserver/registry", "raftstore/...", "internal/..."}},
	{"apiserver/registry", []string{"apiserver/codec/...", "apiserver/objcache", "raftstore", "internal/..."}},
	{"apiserver/...", []string{"apiserver/...", "internal/..."}},
	{"controller/...", []string{"controller/...", "apiserver/registry/...", "internal/..."}},
	{"scheduler/...", []string{"scheduler/...", "apiserver/registry/...", "internal/..."}},
	{"runtime/...", []string{"runtime/...", "apiserver/registry/...", "internal/..."}},
	{"net/...", []string{"net/...", "apiserver/registry/...", "internal/..."}},
	{"cluster/...", []string{"cluster/...", "apiserver/registry/...", "internal/..."}},
	{"buildroot/...", []string{"buildroot/...", "internal/..."}},
	{"test/...", []string{"test/harness", "internal/...", "test/conformance/ociserve"}},
	{"bench/...", []string{"test/harness", "internal/..."}},
	{"examples/...", nil},
}

// soleImporters names the only packages that may import a heavy dependency.
var soleImporters = []struct {
	dep string
	by  []string
	why string
}{
	{"github.com/spf13/pflag", []string{"cmd/edged"}, "flags are parsed in one place"},
	{"go.etcd.io/bbolt", []string{"raftstore/mvcc", "runtime/engine"}, "bbolt's file format is the store's secret; the engine hands containerd's metadata its database"},
	{"golang.org/x/net/http2", []string{"raftstore/etcdapi/rpc"}, "HTTP/2 is net/http's, but for gRPC's small calls"},
	{"github.com/containerd/containerd", []string{"runtime/engine/..."}, "containerd promises nothing about the packages we use: one place to mend"},
	{"github.com/google/nftables", []string{"net/nft"}, "nftables' Flush lies; net/nft reads back"},
	{"github.com/vishvananda/netlink", []string{"net/bridge", "net/mesh", "net/announce", "net/dns"}, "links and routes belong to the data path"},
	{"k8s.io/kubernetes", []string{"apiserver/..."}, "what an object means is decided in the API server"},
	{"k8s.io/apiextensions-apiserver", []string{"apiserver/...", "controller/customresource"}, "what a definition means is decided in the API server; its names are given by the leader"},
	{"k8s.io/kube-aggregator", []string{"apiserver/..."}, "what an APIService means is decided in the API server"},
	{"k8s.io/metrics", []string{"apiserver/metricsapi", "controller/podautoscaler"}, "what is measured is served in one place and acted on in another"},
	{"github.com/prometheus/client_golang", []string{"cmd/edged"}, "what is counted is decided in one place; upstream's API machinery links it anyway"},
	{"github.com/containernetworking/cni", []string{"net/cni"}, "the side of CNI that calls plugins"},
	{"github.com/miekg/dns", []string{"net/dns"}, "one DNS server"},
	{"k8s.io/client-go/informers", nil, "informers keep a second decoded copy of every object (upstream's validation of policies names the package; the linker drops it)"},
	{"k8s.io/client-go/tools/cache", nil, "informers keep a second decoded copy of every object (upstream's printers name the package; the linker drops it)"},
}

// forbidden are packages that the daemon must not contain, with the reason.
var forbidden = map[string]string{
	"k8s.io/apiserver/pkg/server":            "the generic apiserver costs tens of megabytes before it serves anything",
	"k8s.io/kubectl/pkg/cmd":                 "kubectl in the binary costs every process start 7 MB and 63 ms",
	"go.etcd.io/etcd/client/v3":              "in-process users pay no gRPC",
	"go.etcd.io/etcd/server/v3/storage/mvcc": "the store is ours; etcd is the peer in benchmarks",
}

// longFiles may exceed maxLines; each says why.
var longFiles = map[string]string{}

const maxLines = 800

type goPackage struct {
	ImportPath, Dir, Name                    string
	GoFiles, TestGoFiles, XTestGoFiles       []string
	Imports, TestImports, XTestImports, Deps []string
	Standard                                 bool
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}

// below is the package's path in the module; the root is "".
func below(importPath string) (string, bool) {
	if importPath == "edged" {
		return "", true
	}
	return strings.CutPrefix(importPath, "edged/")
}

func matches(pattern, path string) bool {
	prefix, deep := strings.CutSuffix(pattern, "...")
	if !deep {
		return pattern == path
	}
	return path == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(path, prefix)
}

func TestImportGraph(t *testing.T) {
	for _, p := range goList(t, "./...") {
		path, _ := below(p.ImportPath)
		if path == "" {
			continue
		}
		i := slices.IndexFunc(layers, func(l struct {
			pkg string
			may []string
		}) bool {
			return matches(l.pkg, path)
		})
		if i < 0 {
			t.Errorf("%s: no row in layers: say where it stands in the import graph", path)
			continue
		}
		for _, imp := range p.Imports {
			other, ours := below(imp)
			if !ours {
				continue
			}
			if !slices.ContainsFunc(layers[i].may, func(m string) bool { return matches(m, other) }) {
				t.Errorf("%s imports %s: row %q of layers does not allow it", path, other, layers[i].pkg)
			}
		}
	}
}

func TestSoleImporters(t *testing.T) {
	for _, p := range goList(t, "./...") {
		path, _ := below(p.ImportPath)
		if strings.HasPrefix(path, "test/") || strings.HasPrefix(path, "bench/") {
			continue
		}
		for _, imp := range p.Imports {
			for _, s := range soleImporters {
				if imp != s.dep && !strings.HasPrefix(imp, s.dep+"/") {
					continue
				}
				if !slices.ContainsFunc(s.by, func(m string) bool { return matches(m, path) }) {
					t.Errorf("%s imports %s, which only %v may: %s", path, imp, s.by, s.why)
				}
			}
		}
	}
}

func TestForbiddenDependencies(t *testing.T) {
	for _, p := range goList(t, "./cmd/edged") {
		for _, dep := range p.Deps {
			if why, bad := forbidden[dep]; bad {
				t.Errorf("cmd/edged depends on %s: %s", dep, why)
			}
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range goList(t, "./...") {
		var docs []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				docs = append(docs, f.Doc.Text())
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s: %d package comments, want one", p.ImportPath, len(docs))
			continue
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(docs[0], want) {
			t.Errorf("%s: its package comment does not begin with %q", p.ImportPath, want)
		}
	}
}

func TestShelvesHoldNoCode(t *testing.T) {
	for _, shelf := range []string{"net", "runtime"} {
		files, err := filepath.Glob(filepath.Join(shelf, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if filepath.Base(f) != "doc.go" {
				t.Errorf("%s: %s is a shelf of packages and holds no code of its own", f, shelf)
			}
		}
	}
}

func TestFileLengths(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != "." || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || longFiles[path] != "" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(data, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: split it by noun, or say in longFiles why not", path, n, maxLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestReplaceLines holds go.mod to the replace lines that upstream's own
// go.mod needs: each staging module at the release that goes with
// k8s.io/kubernetes, and not one fork.
func TestReplaceLines(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`k8s\.io/kubernetes v1\.(\d+\.\d+)`).FindSubmatch(data)
	if m == nil {
		t.Fatal("go.mod does not require k8s.io/kubernetes")
	}
	want := "v0." + string(m[1])
	for _, line := range regexp.MustCompile(`(?m)^.*=>.*$`).FindAllString(string(data), -1) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "replace "))
		if len(f) != 4 || f[0] != f[2] || !strings.HasPrefix(f[0], "k8s.io/") || f[3] != want {
			t.Errorf("go.mod: %q is not a staging module at %s", strings.TrimSpace(line), want)
		}
	}
}
