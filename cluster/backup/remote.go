package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
)

// Path is where a Server is found on a device.
const Path = "/edged/v1/snapshots/"

// Server lets other devices keep snapshots here. Its caller sees to it that only
// devices of the cluster reach it.
type Server struct {
	// DataDir holds the folder for who names none, and any below it.
	DataDir string
	// Allowed are further folders that may be written to, and those below them.
	Allowed []string
	Logger  *slog.Logger
}

// DefaultFolder is where snapshots go below a data-dir.
const DefaultFolder = "snapshots"

// folder finds the place for a path, which must be below what is allowed.
func (s *Server) folder(path string) (Folder, error) {
	if path == "" {
		return Folder{root: s.DataDir, path: DefaultFolder}, nil
	}
	if !filepath.IsAbs(path) {
		return Folder{}, fmt.Errorf("%q is not a folder's whole path", path)
	}
	for _, root := range append([]string{s.DataDir}, s.Allowed...) {
		rel, err := filepath.Rel(root, path)
		if err == nil && filepath.IsLocal(rel) && !(root == s.DataDir && rel == ".") {
			return Folder{root: root, path: rel}, nil
		}
	}
	return Folder{}, fmt.Errorf("this device keeps no snapshots in %s: name a folder below its data-dir, or allow that one there with --snapshot-accept", path)
}

type answer struct {
	Snapshots []Entry `json:"snapshots,omitempty"`
	Error     string  `json:"error,omitempty"`
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var out answer
	code := http.StatusOK
	if err := s.serve(r, &out); err != nil {
		code, out.Error = http.StatusUnprocessableEntity, err.Error()
		s.Logger.Debug("a snapshot of another device was refused", "from", r.RemoteAddr, "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that is gone asks again.
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) serve(r *http.Request, out *answer) (err error) {
	f, err := s.folder(r.URL.Query().Get("dir"))
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(r.URL.Path, Path)
	switch {
	case r.Method == http.MethodGet && name == "":
		out.Snapshots, err = f.List(r.Context())
		return err
	case r.Method == http.MethodPut:
		return f.Put(r.Context(), name, func(w io.Writer) error {
			_, err := io.Copy(w, r.Body)
			return err
		})
	case r.Method == http.MethodDelete:
		return f.Remove(r.Context(), name)
	}
	return fmt.Errorf("%s %s is nothing that can be done", r.Method, r.URL.Path)
}

// Remote is a place on another device.
type Remote struct {
	Node string
	// Dir is the folder there, empty for the one below its data-dir.
	Dir string
	// Dial finds the device's Server.
	Dial func(node string) (base string, t http.RoundTripper, err error)
}

func (p Remote) String() string { return p.Node + ":" + p.Dir }

// List is part of Place.
func (p Remote) List(ctx context.Context) ([]Entry, error) {
	a, err := p.call(ctx, http.MethodGet, "", nil)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", p, err)
	}
	return a.Snapshots, nil
}

// Put is part of Place.
func (p Remote) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	_, err := p.call(ctx, http.MethodPut, name, r)
	r.CloseWithError(errors.New("the other device takes no more")) // ends write, whatever came of it
	if werr := <-written; err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("keep %s in %s: %w", name, p, err)
	}
	return nil
}

// Remove is part of Place.
func (p Remote) Remove(ctx context.Context, name string) error {
	if _, err := p.call(ctx, http.MethodDelete, name, nil); err != nil {
		return fmt.Errorf("remove %s from %s: %w", name, p, err)
	}
	return nil
}

func (p Remote) call(ctx context.Context, method, name string, body io.Reader) (a answer, err error) {
	base, t, err := p.Dial(p.Node)
	if err != nil {
		return a, err
	}
	req, err := http.NewRequestWithContext(ctx, method, base+Path+name+"?dir="+url.QueryEscape(p.Dir), body)
	if err != nil {
		return a, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("the device answered %s", resp.Status)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("the device answered %s", resp.Status)
	}
	return a, nil
}
