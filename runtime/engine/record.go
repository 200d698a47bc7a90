package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// phase of a record beyond what callers see: what was under way when it was
// written, for the daemon that reads it next.
type phase string

const (
	phaseMaking   phase = "making"   // Create has not finished: sweep
	phaseReady    phase = "ready"    // Created
	phaseStarting phase = "starting" // Start has not finished: ask the shim
	phaseRunning  phase = "running"
	phaseDone     phase = "done"     // Exited or Unknown
	phaseDeleting phase = "deleting" // Delete has not finished: sweep
)

// record is what is kept of a container, in memory and as record.json beside its
// bundle. Version byte: the field V.
type record struct {
	V         int               `json:"v"`
	Phase     phase             `json:"phase"`
	ID        string            `json:"id"`
	Labels    map[string]string `json:"labels,omitempty"`
	Image     string            `json:"image,omitempty"`
	ImageID   string            `json:"imageID,omitempty"`
	Cgroup    string            `json:"cgroup"`
	TTY       bool              `json:"tty,omitempty"`
	Stdin     bool              `json:"stdin,omitempty"`
	StdinOnce bool              `json:"stdinOnce,omitempty"`
	Holder    bool              `json:"holder,omitempty"`

	StopSignal syscall.Signal `json:"stopSignal,omitempty"`
	PID        int            `json:"pid,omitempty"`
	Created    time.Time      `json:"created"`
	Started    time.Time      `json:"started,omitzero"`
	Finished   time.Time      `json:"finished,omitzero"`
	ExitCode   uint32         `json:"exitCode,omitempty"`
	OOMKilled  bool           `json:"oomKilled,omitempty"`
	Lost       bool           `json:"lost,omitempty"` // done, but nobody knows how
	Message    string         `json:"message,omitempty"`
}

const recordVersion = 1

const recordFile = "record.json"

// write replaces the record beside, without a sync: the run-dir does not outlive
// the boot.
func (r *record) write(dir string) error {
	r.V = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the record of container %s: %w", r.ID, err)
	}
	path := filepath.Join(dir, recordFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write the record of container %s: %w", r.ID, err)
	}
	return os.Rename(path+".new", path)
}

func readRecord(dir string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	if r.V != recordVersion || r.ID != filepath.Base(dir) {
		return r, fmt.Errorf("record of version %d for %q", r.V, r.ID)
	}
	return r, nil
}

// view is what callers see.
func (r *record) view() Container {
	c := Container{
		ID: r.ID, Labels: r.Labels, Image: r.Image, ImageID: r.ImageID, PID: r.PID, ExitCode: r.ExitCode,
		OOMKilled: r.OOMKilled, CreatedAt: r.Created, StartedAt: r.Started, FinishedAt: r.Finished,
		Message: r.Message, StopSignal: r.StopSignal, TTY: r.TTY, Stdin: r.Stdin, StdinOnce: r.StdinOnce, State: Created,
	}
	switch {
	case r.Phase == phaseRunning:
		c.State = Running
	case r.Phase == phaseDone && r.Lost:
		c.State = Unknown
	case r.Phase == phaseDone:
		c.State = Exited
	}
	return c
}
