package etcdapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// healthTimeout bounds the read that a health check makes.
const healthTimeout = 7 * time.Second

// handler serves what is not gRPC.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/health", s.serveHealth)
	s.checks(mux, "/livez", map[string]check{"serializable_read": s.checkRead(true)})
	s.checks(mux, "/readyz", map[string]check{
		"data_corruption":   s.checkAlarm(pb.AlarmType_CORRUPT),
		"serializable_read": s.checkRead(true),
		"linearizable_read": s.checkRead(false),
		"non_learner":       s.checkVotes,
	})
	mux.HandleFunc("/version", s.serveVersion)
	mux.HandleFunc("/debug/vars", serveVars)
	if s.cfg.Metrics != nil {
		mux.Handle("/metrics", s.cfg.Metrics)
	}
	if s.cfg.Gateway {
		gateway := s.gateway()
		mux.Handle("/v3/", gateway)
		// What etcd 3.3 called it, and etcd serves still.
		mux.HandleFunc("/v3beta/", func(w http.ResponseWriter, r *http.Request) {
			r.URL.Path = "/v3/" + strings.TrimPrefix(r.URL.Path, "/v3beta/")
			gateway.ServeHTTP(w, r)
		})
	}
	return mux
}

func getOnly(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet {
		return true
	}
	w.Header().Set("Allow", http.MethodGet)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // the client is gone: nobody to tell
}

// serveVersion answers with the versions of this member and of the cluster.
func (s *Server) serveVersion(w http.ResponseWriter, r *http.Request) {
	if !getOnly(w, r) {
		return
	}
	cluster := clusterVersion
	if s.store.Leader() == 0 {
		cluster = "not_decided"
	}
	writeJSON(w, struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
		Storage string `json:"storage"`
	}{Version, cluster, clusterVersion})
}

// serveVars answers with what Go's expvar has by default.
func serveVars(w http.ResponseWriter, r *http.Request) {
	if !getOnly(w, r) {
		return
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	writeJSON(w, map[string]any{"cmdline": os.Args, "memstats": mem})
}

type check func(context.Context) error

func (s *Server) checkRead(local bool) check {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, healthTimeout)
		defer cancel()
		if !local {
			if _, err := s.store.ReadIndex(ctx); err != nil {
				return err
			}
		}
		_, err := s.store.Range(ctx, &pb.RangeRequest{Key: []byte{0}, KeysOnly: true, Limit: 1, Serializable: true})
		return err
	}
}

func (s *Server) checkAlarm(kind pb.AlarmType) check {
	return func(context.Context) error {
		for _, a := range s.store.Alarms() {
			if a.Alarm == kind {
				return fmt.Errorf("alarm activated: %s", kind)
			}
		}
		return nil
	}
}

func (s *Server) checkVotes(context.Context) error {
	if s.store.IsLearner() {
		return fmt.Errorf("learner")
	}
	return nil
}

// checks serves a set of checks at path, and each alone below it.
func (s *Server) checks(mux *http.ServeMux, path string, all map[string]check) {
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	serve := func(w http.ResponseWriter, r *http.Request, names []string) {
		if !getOnly(w, r) {
			return
		}
		var report strings.Builder
		failed := false
		for _, name := range names {
			if err := all[name](r.Context()); err != nil {
				failed = true
				fmt.Fprintf(&report, "[-]%s failed: %v\n", name, err)
			} else {
				fmt.Fprintf(&report, "[+]%s ok\n", name)
			}
		}
		if failed {
			s.log.Warn("a health check failed", "path", r.URL.Path, "report", report.String())
			http.Error(w, report.String(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.URL.Query().Has("verbose") {
			fmt.Fprint(w, report.String())
		}
		fmt.Fprint(w, "ok\n")
	}
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		exclude := r.URL.Query()["exclude"]
		serve(w, r, slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(exclude, n) }))
	})
	for _, name := range names {
		mux.HandleFunc(path+"/"+name, func(w http.ResponseWriter, r *http.Request) { serve(w, r, []string{name}) })
	}
}

// serveHealth is the oldest check: alarms, a leader, a read.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !getOnly(w, r) {
		return
	}
	out := struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{Health: "true"}
	local := r.URL.Query().Get("serializable") == "true"
	if out.Reason = s.unhealthy(r.Context(), local, r.URL.Query()["exclude"]); out.Reason == "" {
		s.healthy.Add(1)
		writeJSON(w, out)
		return
	}
	s.ill.Add(1)
	out.Health = "false"
	data, err := json.Marshal(out)
	if err != nil {
		data = []byte(err.Error())
	}
	s.log.Warn("unhealthy", "reason", out.Reason)
	http.Error(w, string(data), http.StatusServiceUnavailable)
}

func (s *Server) unhealthy(ctx context.Context, local bool, exclude []string) string {
	for _, a := range s.store.Alarms() {
		if !slices.Contains(exclude, a.Alarm.String()) {
			return "ALARM " + a.Alarm.String()
		}
	}
	if !local && s.store.Leader() == 0 {
		return "RAFT NO LEADER"
	}
	if err := s.checkRead(local)(ctx); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}
