package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestManifests: a file put into the data-dir's folder becomes a workload that
// runs, and its next version replaces it.
func TestManifests(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.DataDir(), "manifests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "shop.yaml")
	put := func(text string) {
		t.Helper()
		beside := filepath.Join(dir, ".shop.yaml.new")
		if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(beside, file); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		p.MustKubectl("", "delete", "namespace", "shop", "--wait=false")
	})
	manifest := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n" +
		strings.ReplaceAll(webDeployment, "metadata: {name: web}", "metadata: {name: web, namespace: shop}")
	put(manifest)
	deployment := func(jsonpath, value string) {
		t.Helper()
		p.MustKubectl("", "wait", "--namespace=shop", "deployment/web", "--for=create", "--timeout=60s")
		p.MustKubectl("", "wait", "--namespace=shop", "deployment/web", "--for=jsonpath="+jsonpath+"="+value, "--timeout=60s")
	}
	deployment("{.status.readyReplicas}", "2")
	put(strings.Replace(manifest, "replicas: 2", "replicas: 1", 1))
	deployment("{.status.replicas}", "1")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	p.MustKubectl("", "get", "--namespace=shop", "deployment/web")
}
