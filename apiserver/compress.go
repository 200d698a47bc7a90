package apiserver

import (
	"bufio"
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// gzipThreshold is upstream's: smaller answers cost more to compress than to
// send.
const gzipThreshold = 128 << 10

// gzipWriters are reused, because each holds about 800 KB; the garbage
// collector takes those that rest.
var gzipWriters = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
	return z
}}

func acceptsGzip(req *http.Request) bool {
	return strings.Contains(req.Header.Get("Accept-Encoding"), "gzip")
}

// write sends a whole body, compressed if it is large and the client takes it.
func (s *Server) write(w http.ResponseWriter, req *http.Request, code int, body []byte) {
	if len(body) < gzipThreshold || !acceptsGzip(req) || req.Method == http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(code)
		w.Write(body) // an error is the client's going away
		return
	}
	out := newBody(w, req, code)
	out.Write(body)
	out.Close()
}

// body streams a response whose size is not known beforehand: up to
// gzipThreshold is held back, and what is larger leaves compressed.
type body struct {
	w    http.ResponseWriter
	code int
	zip  bool // the client takes gzip

	held []byte
	to   io.Writer // nil while holding back
	buf  *bufio.Writer
	z    *gzip.Writer
}

func newBody(w http.ResponseWriter, req *http.Request, code int) *body {
	return &body{w: w, code: code, zip: acceptsGzip(req) && req.Method != http.MethodHead}
}

func (b *body) Write(p []byte) (int, error) {
	if b.to != nil {
		return b.to.Write(p)
	}
	if len(b.held)+len(p) < gzipThreshold {
		b.held = append(b.held, p...)
		return len(p), nil
	}
	b.begin()
	if _, err := b.to.Write(b.held); err != nil {
		return 0, err
	}
	b.held = nil
	return b.to.Write(p)
}

func (b *body) begin() {
	if !b.zip {
		b.w.WriteHeader(b.code)
		b.buf = bufio.NewWriterSize(b.w, 16<<10)
		b.to = b.buf
		return
	}
	h := b.w.Header()
	h.Set("Content-Encoding", "gzip")
	h.Add("Vary", "Accept-Encoding")
	b.w.WriteHeader(b.code)
	b.z = gzipWriters.Get().(*gzip.Writer)
	b.z.Reset(b.w)
	b.buf = bufio.NewWriterSize(b.z, 16<<10)
	b.to = b.buf
}

// Close sends what is left.
func (b *body) Close() error {
	if b.to == nil {
		b.w.Header().Set("Content-Length", strconv.Itoa(len(b.held)))
		b.w.WriteHeader(b.code)
		_, err := b.w.Write(b.held)
		return err
	}
	err := b.buf.Flush()
	if b.z != nil {
		if closeErr := b.z.Close(); err == nil {
			err = closeErr
		}
		b.z.Reset(nil)
		gzipWriters.Put(b.z)
	}
	return err
}
