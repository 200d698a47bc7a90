package clock

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// knownFile is empty; its time of change is the last known time at an orderly stop.
const knownFile = "clock"

// knownFiles are those whose times of change tell what was known last.
func knownFiles(dataDir string) (paths []string) {
	for _, pattern := range []string{knownFile, "store", "store/*", "store/wal/*"} {
		found, err := filepath.Glob(filepath.Join(dataDir, pattern))
		if err == nil { // the patterns are right
			paths = append(paths, found...)
		}
	}
	return paths
}

// lastKnown is the newest time that dataDir knows of, zero for none.
func lastKnown(dataDir string) (last time.Time) {
	for _, p := range knownFiles(dataDir) {
		if fi, err := os.Stat(p); err == nil && fi.ModTime().After(last) {
			last = fi.ModTime()
		}
	}
	return last
}

// note makes now the last known time: also if files are of a future that was a
// wrong clock.
func note(dataDir string, now time.Time) error {
	path := filepath.Join(dataDir, knownFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Close(), os.Chtimes(path, now, now)); err != nil {
		return err
	}
	return notAfter(dataDir, now)
}

// notAfter brings files back that are newer than now.
func notAfter(dataDir string, now time.Time) error {
	var errs []error
	for _, p := range knownFiles(dataDir) {
		fi, err := os.Stat(p)
		if err == nil && fi.ModTime().After(now.Add(slack)) {
			err = os.Chtimes(p, now, now)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
