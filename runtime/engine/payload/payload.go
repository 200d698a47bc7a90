// Package payload carries the programs that edged starts: the shim, runc and the
// holder of a PID namespace, compressed inside the daemon's own binary.
//
// It does not start them; runtime/engine does. build.sh makes them; a daemon
// built without that step works until it is asked for a container.
//
// Promise: [Unpack] leaves complete files or none. A file is named after the hash
// of its content, so two versions of edged never share one, and what is there is
// neither written nor read again.
//
// Dangers: a program that runs keeps its file alive; Unpack of another version
// removes the name only.
//
// May be imported by runtime/engine.
package payload

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// ErrMissing means that this binary was built without its payload.
var ErrMissing = errors.New("this build of edged carries no container programs: run `make payload` and build again")

// Programs are the paths of what was unpacked.
type Programs struct {
	Shim, Runc, Holder string
}

// Unpack makes sure that the programs are in dir, and removes those of other
// versions.
func Unpack(dir string) (Programs, error) {
	entries, err := fs.ReadDir(files, filesDir)
	if err != nil {
		return Programs{}, fmt.Errorf("read the payload: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Programs{}, fmt.Errorf("make the folder of programs: %w", err)
	}
	var p Programs
	paths := map[string]*string{"shim": &p.Shim, "runc": &p.Runc, "holder": &p.Holder}
	keep := map[string]bool{}
	for _, entry := range entries {
		name, packed := strings.CutSuffix(entry.Name(), ".zst")
		program, _, _ := strings.Cut(name, "-")
		slot := paths[program]
		if !packed || slot == nil {
			continue
		}
		*slot, keep[name] = filepath.Join(dir, name), true
		if _, err := os.Stat(*slot); err == nil {
			continue
		}
		if err := unpack(filesDir+"/"+entry.Name(), *slot); err != nil {
			return Programs{}, fmt.Errorf("unpack %s: %w", program, err)
		}
	}
	for _, slot := range paths {
		if *slot == "" {
			return Programs{}, ErrMissing
		}
	}
	removeOthers(dir, paths, keep)
	return p, nil
}

// unpack writes beside, syncs, renames.
func unpack(name, path string) error {
	src, err := files.Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dec, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer dec.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing to remove
	if _, err := io.Copy(tmp, dec); err != nil {
		tmp.Close()
		return err
	}
	if err := errors.Join(tmp.Chmod(0o755), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// removeOthers is best effort: a left-over costs room, nothing else.
func removeOthers(dir string, programs map[string]*string, keep map[string]bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		program, _, _ := strings.Cut(strings.TrimPrefix(e.Name(), "."), "-")
		if programs[program] != nil && !keep[e.Name()] {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
