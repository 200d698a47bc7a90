// Package inprocess asks an http.Handler of this process as if it were a server: the
// answer is kept, up to a bound, and given back whole. It is not for streams.
//
// It imports std alone, and may be imported by anybody.
package inprocess

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// Transport is an http.RoundTripper over a handler. It is safe for concurrent use if the
// handler is.
type Transport struct {
	http.Handler
	MaxBytes int // of an answer's body; one that is longer is an error
}

// CloseIdleConnections has nothing to do.
func (Transport) CloseIdleConnections() {}

// RoundTrip has the handler answer.
func (t Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	a := &answer{header: http.Header{}, code: http.StatusOK, max: t.MaxBytes}
	t.ServeHTTP(a, req)
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{
		Status: strconv.Itoa(a.code) + " " + http.StatusText(a.code), StatusCode: a.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: req,
	}, nil
}

var errTooLong = errors.New("the answer is too long")

// answer keeps what a handler writes.
type answer struct {
	header http.Header
	code   int
	max    int
	body   bytes.Buffer
	err    error
}

func (a *answer) Header() http.Header  { return a.header }
func (a *answer) WriteHeader(code int) { a.code = code }
func (a *answer) Write(p []byte) (int, error) {
	if a.body.Len()+len(p) > a.max {
		a.err = errTooLong
		return 0, a.err
	}
	return a.body.Write(p)
}
