package apiserver

import (
	"context"
	"io"
	"net/http"
	"sync"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// logOverWebSocket answers a log request that is a WebSocket handshake, as
// browsers and upstream's tests send it: the log is one binary (or base64)
// stream of messages. The device is asked first, so that a refusal still is a
// plain Status.
func (c *call) logOverWebSocket(node, path string, q map[string][]string) error {
	ctx, cancel := context.WithCancel(c.req.Context())
	defer cancel()
	client := c.req
	c.req = client.Clone(ctx)
	for _, h := range []string{"Upgrade", "Connection", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
		c.req.Header.Del(h)
	}
	r, pw := io.Pipe()
	out := &pipeWriter{header: http.Header{}, w: pw, begun: make(chan struct{})}
	checked := &checkedWriter{ResponseWriter: out}
	done := make(chan error, 1)
	go func() {
		err := c.toNode(checked, node, path, q)
		if err == nil {
			err = checked.err(c.gr, c.info.Name)
		}
		done <- err
		pw.Close()
	}()
	defer func() {
		cancel()
		r.Close() // whoever still writes fails
	}()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		done <- nil
	case <-out.begun:
	}
	reader := wsstream.NewReader(r, true, wsstream.NewDefaultReaderProtocols())
	err := reader.Copy(c.w, client)
	cancel()
	r.Close()
	<-done
	if err != nil {
		c.logger.Debug("a log's WebSocket broke off", "err", err)
	}
	return nil
}

// pipeWriter is a response whose body goes into a pipe. Begun is closed when
// the first bytes come: from then on it is an answer.
type pipeWriter struct {
	header http.Header
	w      *io.PipeWriter
	once   sync.Once
	begun  chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(int) { w.once.Do(func() { close(w.begun) }) }

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.w.Write(p)
}

// Flush has nothing to do: a pipe holds nothing back.
func (w *pipeWriter) Flush() { w.WriteHeader(http.StatusOK) }
