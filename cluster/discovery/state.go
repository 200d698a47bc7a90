package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"edged/internal/atomicfile"
)

const (
	stateFile    = "forming.json"
	stateVersion = 1
)

type stateOnDisk struct {
	Version int `json:"version"`
	State
}

// loadState reads what this device promised, or makes it a device.
func loadState(dir string) (State, error) {
	path := filepath.Join(dir, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		st := State{ID: NewID()}
		return st, saveState(dir, st)
	}
	if err != nil {
		return State{}, fmt.Errorf("--data-dir: %w", err)
	}
	var s stateOnDisk
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != stateVersion {
		return State{}, fmt.Errorf("%s is of version %d, this edged understands %d: use a newer edged", path, s.Version, stateVersion)
	}
	if s.ID == (ID{}) {
		return State{}, fmt.Errorf("%s names no device; `edged reset` makes this one forget what it promised", path)
	}
	return s.State, nil
}

// saveState is done when it is on disk. The file holds the cluster's keys.
func saveState(dir string, st State) error {
	data, err := json.Marshal(stateOnDisk{stateVersion, st})
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, stateFile), append(data, '\n'), 0o600)
}

// Forget removes what a device that is of a cluster now need not know any more.
func Forget(dir string) error {
	err := os.Remove(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	return atomicfile.SyncDir(dir)
}
