// Package payload carries the programs that edged starts: the shim, runc and the
// holder of a PID namespace, compressed inside the daemon's own binary.
//
// It does not start them; runtime/engine does. build.sh makes them; a daemon
// built without that step works until it is asked for a container.
//
// Promise: [Unpack] leaves complete files or none. A file is named after the hash
// of its content, so what is there is neither written nor read again; a link
// without the hash points to it, so that a path handed to a long-lived process
// (runc's, to the shim) is still right after an upgrade.
//
// Dangers: runc of one version is then asked to finish what another began. Its
// state files have been compatible over releases; a pin that breaks this must
// say so.
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

// Programs are the paths of what was unpacked: links that stay the same over
// versions.
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
		*slot, keep[name], keep[program] = filepath.Join(dir, program), true, true
		if err := install(filesDir+"/"+entry.Name(), dir, name, program); err != nil {
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

// install unpacks a file unless it is there, and points the program's link to it.
func install(from, dir, name, program string) error {
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if err := unpack(from, path); err != nil {
			return err
		}
	}
	link := filepath.Join(dir, program)
	if have, err := os.Readlink(link); err == nil && have == name {
		return nil
	}
	beside := link + ".new"
	_ = os.Remove(beside) // of an attempt that was cut off
	if err := os.Symlink(name, beside); err != nil {
		return err
	}
	return os.Rename(beside, link)
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
