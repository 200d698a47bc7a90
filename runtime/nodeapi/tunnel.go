package nodeapi

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// wantsTunnel tells whether the client carries its port-forward's SPDY over a
// WebSocket (KEP-4006), kubectl's first choice, because proxies let it pass.
func wantsTunnel(r *http.Request) bool { return wsstream.IsWebSocketRequestWithTunnelingProtocol(r) }

// openTunnel makes the WebSocket and returns the writer and request by which
// cri-streaming finds in it the SPDY connection that it knows.
func openTunnel(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, io.Closer, error) {
	up := websocket.Upgrader{
		Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1},
		CheckOrigin:  func(*http.Request) bool { return true }, // the API server has authorized the request
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil, nil, err // Upgrade has answered
	}
	t := &tunnel{ws: ws}
	spdy := r.Clone(r.Context())
	spdy.Method = http.MethodPost
	spdy.Header = http.Header{
		"Connection":                {"Upgrade"},
		"Upgrade":                   {"SPDY/3.1"},
		"X-Stream-Protocol-Version": {portforward.PortForwardV1Name},
	}
	return &tunnelWriter{t, http.Header{}}, spdy, ws, nil
}

// tunnelWriter is a ResponseWriter whose connection is a tunnel. The answer to
// the upgrade was given when the tunnel was made.
type tunnelWriter struct {
	*tunnel
	header http.Header
}

func (w *tunnelWriter) Header() http.Header { return w.header }
func (w *tunnelWriter) WriteHeader(int)     {}

func (w *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.tunnel, bufio.NewReadWriter(bufio.NewReader(w.tunnel), bufio.NewWriter(w.tunnel)), nil
}

// tunnel is a connection whose bytes are the payload of binary messages. One
// goroutine may read and one may write.
type tunnel struct {
	ws *websocket.Conn
	in io.Reader // what is left of the current message; nil before the next
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.in == nil {
			typ, in, err := t.ws.NextReader()
			if err != nil {
				var closed *websocket.CloseError
				if errors.As(err, &closed) {
					err = io.EOF
				}
				return 0, err
			}
			if typ != websocket.BinaryMessage {
				return 0, errors.New("a tunnel carries binary messages only")
			}
			t.in = in
		}
		n, err := t.in.Read(p)
		if err == io.EOF {
			t.in, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *tunnel) Close() error {
	// Polite, if there is still somebody to read it.
	_ = t.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	return t.ws.Close()
}

func (t *tunnel) LocalAddr() net.Addr                 { return t.ws.NetConn().LocalAddr() }
func (t *tunnel) RemoteAddr() net.Addr                { return t.ws.NetConn().RemoteAddr() }
func (t *tunnel) SetDeadline(at time.Time) error      { return t.ws.NetConn().SetDeadline(at) }
func (t *tunnel) SetReadDeadline(at time.Time) error  { return t.ws.SetReadDeadline(at) }
func (t *tunnel) SetWriteDeadline(at time.Time) error { return t.ws.SetWriteDeadline(at) }
