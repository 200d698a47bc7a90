package apiserver_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// TestLogOverWebSocket: a log is one stream of messages, bytes or base64, and a
// refusal is the same Status as without WebSocket.
func TestLogOverWebSocket(t *testing.T) {
	e, _ := streamEnv(t)
	e.makePod("p", nil)
	admin := e.admin()
	read := func(protocol string) string {
		t.Helper()
		cfg, err := websocket.NewConfig(strings.Replace(admin.Host, "https:", "wss:", 1)+"/api/v1/namespaces/default/pods/p/log?container=c", "http://localhost")
		must(t, err)
		cfg.TlsConfig, err = rest.TLSConfigFor(admin)
		must(t, err)
		cfg.Protocol = []string{protocol}
		ws, err := websocket.DialConfig(cfg)
		must(t, err)
		defer ws.Close()
		var out strings.Builder
		for {
			var msg []byte
			err := websocket.Message.Receive(ws, &msg)
			if errors.Is(err, io.EOF) {
				return out.String()
			}
			must(t, err)
			out.Write(msg)
		}
	}
	if got := read("binary.k8s.io"); got != "line 1\nline 2\n" {
		t.Errorf("bytes: %q", got)
	}
	if got := read("base64.binary.k8s.io"); got != "bGluZSAxCg==bGluZSAyCg==" {
		t.Errorf("base64: %q", got)
	}
	handshake := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	resp := e.do(admin, "GET", "/api/v1/namespaces/default/pods/p/log?previous=true", handshake)
	if body := text(t, resp); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "previous terminated container") {
		t.Errorf("refused: %d %s", resp.StatusCode, body)
	}
	e.makePod("far", func(p *corev1.Pod) { p.Spec.NodeName = "n2" })
	if resp := e.do(admin, "GET", "/api/v1/namespaces/default/pods/far/log", handshake); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("no such device: %d %s", resp.StatusCode, text(t, resp))
	}
}
