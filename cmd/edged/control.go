package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The control socket is how subcommands reach the running daemon. Its folder
// and its mode are the access control: whoever may open it is root here.
const controlSocket = "edged.sock"

// listenControl makes the socket. A stale one, left by a daemon that was
// killed, is replaced: the lock on the data-dir already says we are alone.
func listenControl(runDir string) (net.Listener, error) {
	path := filepath.Join(runDir, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove a stale control socket: %w", err)
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("--run-dir: listen on %s: %w", path, err)
	}
	return l, nil
}

// control is the socket's server. Until the device is of a cluster it tells what
// the device waits for.
type control struct {
	phase   atomic.Pointer[string]
	handler atomic.Pointer[http.ServeMux] // nil until there is more to tell
	stop    func() error                  // ends the server, once
}

func (c *control) set(mux *http.ServeMux) { c.handler.Store(mux) }

func (d *device) setPhase(text string) { d.control.phase.Store(&text) }

// openControl answers from now on, until the device is closed.
func (d *device) openControl() {
	d.setPhase("starting")
	early := http.NewServeMux()
	early.Handle("GET /v1/status", controlFunc(func(http.ResponseWriter, *http.Request) (any, error) {
		return controlStatus{
			Node: d.cfg.nodeName, Version: version, Binary: binaryPath(), PID: os.Getpid(), Started: d.started, Phase: *d.control.phase.Load(),
		}, nil
	}))
	early.Handle("/", controlFunc(func(http.ResponseWriter, *http.Request) (any, error) {
		return nil, fmt.Errorf("this device is %s; try again when it is ready", *d.control.phase.Load())
	}))
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 90 * time.Second, ErrorLog: log.New(handshakeErrors{d.log}, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if h := d.control.handler.Load(); h != nil {
				h.ServeHTTP(w, r)
				return
			}
			early.ServeHTTP(w, r)
		}),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(d.ports.control) }()
	d.control.stop = sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil { // requests got a moment to end
			srv.Close()
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", d.ports.control.Addr(), err)
		}
		return nil
	})
	d.onClose(d.control.stop)
}

// controlError is the body of an answer that is not 200.
type controlError struct {
	Error string `json:"error"`
}

// controlFunc handles one request; its result is the JSON answer, or nil when
// it wrote the answer itself.
type controlFunc func(w http.ResponseWriter, r *http.Request) (any, error)

func (f controlFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v, err := f(w, r)
	if err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		v = controlError{err.Error()}
	}
	if v != nil {
		// The client is gone when this fails; nobody is left to tell.
		_ = json.NewEncoder(w).Encode(v)
	}
}

// callControl sends a request to the running daemon and copies the answer to
// out, or decodes it when out is a pointer to something else.
func callControl(ctx context.Context, runDir, method, path string, body io.Reader, out any) error {
	sock := filepath.Join(runDir, controlSocket)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", sock)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://edged"+path, body)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("no edged answers at %s (%w): is it running, and is --run-dir right?", sock, op.Err)
		}
		return fmt.Errorf("ask the daemon at %s: %w", sock, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e controlError
		data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err == nil {
			err = json.Unmarshal(data, &e)
		}
		if err != nil || e.Error == "" {
			return fmt.Errorf("the daemon answered %s: %s", resp.Status, bytes.TrimSpace(data))
		}
		return errors.New(e.Error)
	}
	switch out := out.(type) {
	case io.Writer:
		_, err = io.Copy(out, resp.Body)
	case nil:
	default:
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}
