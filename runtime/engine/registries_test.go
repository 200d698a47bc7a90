package engine_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edged/runtime/engine"
)

// TestRegistriesFile: mirrors in their order, a path and names rewritten, TLS with
// a CA of its own, credentials of the host unless the Pod brings some, and the
// registry itself when no mirror has the image.
func TestRegistriesFile(t *testing.T) {
	d := newDevice(t)
	e := d.open()
	r := newRegistry(t)
	r.auth = "u:p"
	var asked []string
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = append(asked, req.URL.Path)
		path, ok := strings.CutPrefix(req.URL.Path, "/cache/mirrored/")
		if !ok {
			http.NotFound(w, req)
			return
		}
		req.URL.Path = "/v2/" + path
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(secure.Close)
	host := strings.TrimPrefix(secure.URL, "https://")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(text string) string {
		t.Helper()
		file := filepath.Join(dir, "registries.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	config := func(password string) string {
		return write(fmt.Sprintf(`
mirrors:
  reg.example:
    endpoint: ["http://127.0.0.1:1", "https://%[1]s/cache"]
    rewrite: {"^(bo.*)$": "mirrored/$1"}
  "*":
    endpoint: ["http://127.0.0.1:1"]
configs:
  "%[1]s":
    auth: {username: u, password: %[2]q}
    tls: {ca_file: %[3]s}
`, host, password, ca))
	}
	img, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{Registries: config("p")})
	if err != nil || img.Names[0] != "reg.example/box:1" {
		t.Fatalf("pulled %+v, %v; asked for %q", img, err, asked)
	}
	if _, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{Registries: config("wrong")}); err == nil {
		t.Error("pulled with a wrong password")
	}
	if _, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{Registries: config("wrong"), Auth: func(h string) engine.Auth {
		if h != host {
			return engine.Auth{}
		}
		return engine.Auth{Username: "u", Password: "p"}
	}}); err != nil {
		t.Errorf("with the Pod's credentials: %v", err)
	}
	r.auth = ""
	direct := strings.TrimPrefix(r.URL, "http://")
	if _, err := e.Pull(ctx, direct+"/box:1", engine.PullOptions{Registries: config("p")}); err != nil {
		t.Errorf("without a mirror that answers: %v", err)
	}
	for text, want := range map[string]string{
		"mirrors: [": "registries.yaml", "mirrors: {x: {endpoint: [\"ftp://x\"]}}": "want https://",
		"mirrors: {x: {rewrite: {\"(\": y}}}": "rewrite", "configs: {x: {auth: {passwort: secret}}}": "passwort",
	} {
		_, err := e.Pull(ctx, "reg.example/box:1", engine.PullOptions{Registries: write(text)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
