package apiserver

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// HealthCheck is a named part of the device's health.
type HealthCheck struct {
	Name string
	// Live says that the check counts for /livez as well: a failure that only
	// a restart cures.
	Live  bool
	Check func() error
}

var healthPaths = []string{"/healthz", "/livez", "/readyz"}

func isHealthPath(path string) bool {
	for _, p := range healthPaths {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// checks are those that a health path runs; ping always passes.
func (s *Server) checks(path string) []HealthCheck {
	checks := []HealthCheck{{Name: "ping", Live: true, Check: func() error { return nil }}}
	for _, c := range s.cfg.Checks {
		if c.Live || path == "/readyz" {
			checks = append(checks, c)
		}
	}
	return checks
}

// serveHealth answers /healthz, /livez, /readyz and a single check below them,
// with ?verbose and ?exclude=, in upstream's words.
func (s *Server) serveHealth(w http.ResponseWriter, req *http.Request) {
	root, one, single := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/")
	checks := s.checks("/" + root)
	if single {
		i := slices.IndexFunc(checks, func(c HealthCheck) bool { return c.Name == one })
		if i < 0 {
			notFoundPath(w)
			return
		}
		s.serveCheck(w, checks[i])
		return
	}
	excluded := req.URL.Query()["exclude"]
	var out strings.Builder
	var failed []string
	for _, c := range checks {
		if slices.Contains(excluded, c.Name) {
			fmt.Fprintf(&out, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := c.Check(); err != nil {
			// Why is not for everybody, and who asks is anybody, as often as they like.
			s.logger.Debug("health check failed", "check", c.Name, "path", req.URL.Path, "err", err)
			failed = append(failed, c.Name)
			fmt.Fprintf(&out, "[-]%s failed: reason withheld\n", c.Name)
			continue
		}
		fmt.Fprintf(&out, "[+]%s ok\n", c.Name)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if len(failed) > 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s%s check failed\n", out.String(), root)
		return
	}
	if _, verbose := req.URL.Query()["verbose"]; !verbose {
		fmt.Fprint(w, "ok")
		return
	}
	fmt.Fprintf(w, "%s%s check passed\n", out.String(), root)
}

func (s *Server) serveCheck(w http.ResponseWriter, c HealthCheck) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := c.Check(); err != nil {
		http.Error(w, fmt.Sprintf("internal server error: %v", err), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, "ok")
}
