package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"

	"edged/cluster/backup"
	"edged/cluster/join"
	"edged/runtime/engine"
)

// controlStatus is the device as `edged status` shows it.
type controlStatus struct {
	Node        string `json:"node"`
	Address     string `json:"address"`
	Version     string `json:"version"`
	Role        string `json:"role"`
	Ready       bool   `json:"ready"`
	RunsPods    bool   `json:"runsPods"`
	MemberID    string `json:"memberID"`
	Revision    int64  `json:"revision"`
	StoreBytes  int64  `json:"storeBytes"`
	DiskFull    bool   `json:"diskFull"`
	Containers  int    `json:"containers"`
	CPUs        int    `json:"cpus"`
	MemoryBytes int64  `json:"memoryBytes"`
	// Snapshots are the scheduled ones, on the device that takes them.
	Snapshots *backup.Status `json:"snapshots,omitempty"`
	// Binary is the file that the daemon was started from.
	Binary string `json:"binary"`
	// Phase is what a device does that is not of a cluster yet; then all but it and
	// the node's name, version and process is missing.
	Phase   string    `json:"phase,omitempty"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
}

// controlHandlers are what the control socket serves.
func (d *device) controlHandlers(mux *http.ServeMux) {
	mux.Handle("GET /v1/status", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return d.clusterStatus(r.Context())
	}))
	mux.Handle("POST /v1/kubeconfig", controlFunc(func(w http.ResponseWriter, r *http.Request) (any, error) {
		ttl, err := time.ParseDuration(r.URL.Query().Get("ttl"))
		if err != nil {
			return nil, err
		}
		server := r.URL.Query().Get("server")
		if server == "" {
			server = fmt.Sprintf("https://%s:%d", d.address(), d.cfg.parsed.api.Port())
		}
		data, err := d.identity.Kubeconfig(server, "admin", []string{"system:masters"}, ttl)
		if err != nil {
			return nil, err
		}
		_, err = w.Write(data)
		return nil, err
	}))
	controlTokens(mux, join.NewTokens(d.registry, d.identity.CA, d.clock.Now))
	d.controlMembers(mux)
	d.controlCA(mux)
	d.controlSecrets(mux)
	d.controlRestart(mux)
	d.controlRollout(mux)
	controlImages(mux, lateEngine{d})
	controlSnapshot(mux, d.store)
}

func (d *device) status() controlStatus {
	st := d.store.Status()
	role := "voter"
	switch {
	case st.Leader == st.MemberID:
		role = "leader"
	case st.Leader == 0:
		role = "without a leader"
	case st.IsLearner:
		role = "learner"
	}
	if d.cfg.role == roleWitness {
		role += " (witness)"
	}
	s := controlStatus{
		Node: d.cfg.nodeName, Address: d.address().String(), Version: version, Role: role, Ready: d.readiness() == nil, RunsPods: d.running.Load(),
		MemberID: fmt.Sprintf("%x", st.MemberID), Revision: st.Revision, StoreBytes: st.SizeBytes, DiskFull: st.NoSpace,
		MemoryBytes: memoryBytes(), CPUs: cpus(), Binary: binaryPath(), PID: os.Getpid(), Started: d.started,
	}
	s.Snapshots = d.backupStatus()
	if d.running.Load() {
		for _, c := range d.engine.List() {
			if c.State == engine.Running {
				s.Containers++
			}
		}
	}
	return s
}

var errStarting = errors.New("the container runtime is starting; try again in a moment")

// lateEngine is the engine once it is open.
type lateEngine struct{ d *device }

func (l lateEngine) ready() error {
	switch {
	case l.d.cfg.role == roleWitness:
		return errWitness
	case !l.d.running.Load():
		return errStarting
	}
	return nil
}

func (l lateEngine) ImportImages(ctx context.Context, r io.Reader) ([]engine.Image, error) {
	if err := l.ready(); err != nil {
		return nil, err
	}
	return l.d.engine.ImportImages(ctx, r)
}

func (l lateEngine) Images(ctx context.Context) ([]engine.Image, error) {
	if err := l.ready(); err != nil {
		return nil, err
	}
	return l.d.engine.Images(ctx)
}

func (l lateEngine) RemoveImage(ctx context.Context, ref string) error {
	if err := l.ready(); err != nil {
		return err
	}
	return l.d.engine.RemoveImage(ctx, ref)
}

func runStatus(ctx context.Context, e env) error {
	var c config
	var output string
	help, err := c.parse("status", e.args, func(fs *pflag.FlagSet) {
		c.folderFlags(fs)
		fs.StringVarP(&output, "output", "o", "", "json, or a table if empty")
	})
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	if output != "" && output != "json" {
		return misusef("--output: %q is not json", output)
	}
	var s clusterStatus
	if err := callControl(ctx, c.runDir, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	if s.Phase != "" {
		_, err := fmt.Fprintf(e.stdout, "%s is %s\n", s.Node, s.Phase)
		return err
	}
	if err := s.table(e.stdout); err != nil {
		return err
	}
	printBackups(e.stdout, s.Snapshots)
	return nil
}

func runKubeconfig(ctx context.Context, e env) error {
	var c config
	var server string
	ttl := 365 * 24 * time.Hour
	help, err := c.parse("kubeconfig", e.args, func(fs *pflag.FlagSet) {
		c.folderFlags(fs)
		fs.StringVar(&server, "server", "", "`URL` of the API for the other machine (default https://<this device's address>:6443)")
		fs.DurationVar(&ttl, "ttl", ttl, "how long the certificate is good for")
	})
	if err != nil {
		return err
	}
	if help != "" {
		_, err := fmt.Fprint(e.stdout, help)
		return err
	}
	if ttl < time.Minute {
		return misusef("--ttl: %v is less than a minute", ttl)
	}
	q := fmt.Sprintf("/v1/kubeconfig?ttl=%s&server=%s", ttl, server)
	return callControl(ctx, c.runDir, http.MethodPost, q, nil, e.stdout)
}
