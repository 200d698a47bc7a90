package nodeapi

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNodeLogs(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "shadow")
	dir := t.TempDir()
	for name, content := range map[string]string{"a.log": "of a", "b/b.log": "of b", "c": "of c", "index.html": "x"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	// Nobody writes to it: who opens it waits for ever.
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := New(Config{NodeLogs: dir})
	for _, tt := range []struct {
		path string
		code int
		want string
	}{
		{"/logs/b/", 200, `<a href="b.log">b.log</a>`},
		{"/logs/a.log", 200, "of a"},
		{"/logs/none", 404, ""},
		{"/logs/link", 0, ""},
		{"/logs/fifo", 404, ""},
		{"/logs/?query=fifo", 200, "for fifo"},
		{"/logs/?query=link", 200, "error getting log for link"},
		{"/logs/?query=/link", 406, "path escapes"},
		{"/logs/?query=a", 200, "of a"},
		{"/logs/?query=b&query=c", 200, "of bof c"},
		{"/logs/?query=d", 200, "\nlog not found for d\n"},
		{"/logs/?query=/b/b.log", 200, "of b"},
		{"/logs/?query=/../a", 406, "query: Invalid value"},
		{"/logs/?query=", 400, "may not be empty"},
		{"/logs/?query=a&tailLines=5", 200, "options present and query resolved to log files for [a]\ntry without specifying options"},
		{"/logs/?query=a&tailLines=x", 400, "tailLines: Invalid value"},
		{"/logs/?tailLines=5", 406, "query: Required value: cannot be empty with options"},
		{"/logs/?query=a&query=/a.log", 406, "cannot specify a file and service"},
		{"/logs/?query=a%3Bb", 406, "input contains unsupported characters"},
		{"/logs/?query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", 406, "must be after `sinceTime`"},
		{"/logs/b/?query=a", 406, "path not allowed in query mode"},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, tt.path, nil))
		body := rec.Body.String()
		if tt.code != 0 && rec.Code != tt.code || !strings.Contains(body, tt.want) || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %q, want %d %q", tt.path, rec.Code, body, tt.code, tt.want)
		}
	}
}
