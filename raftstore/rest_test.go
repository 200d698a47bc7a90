package raftstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edged/raftstore/mvcc"
)

// TestReleaseMemory: a store that rests has in its file what it held in memory for
// that, and nothing is written for a little.
func TestReleaseMemory(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	onDisk := func() int64 {
		t.Helper()
		path := filepath.Join(t.TempDir(), "state.db")
		data, err := os.ReadFile(filepath.Join(dir, "state.db"))
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		db, err := mvcc.Open(mvcc.Config{Path: path, Logger: s.log})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		rev, _ := db.Revision()
		return rev
	}
	before := onDisk()
	put(t, s, "little", "x")
	if err := s.ReleaseMemory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rev := onDisk(); rev != before {
		t.Errorf("a little was written: the file is at revision %d, was at %d", rev, before)
	}
	last := put(t, s, "much", strings.Repeat("x", 2*restBytes))
	if err := s.ReleaseMemory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rev := onDisk(); rev != last {
		t.Errorf("the file is at revision %d, want %d", rev, last)
	}
	if n := s.db.Pending(); n != 0 {
		t.Errorf("%d bytes still wait in memory", n)
	}
	put(t, s, "more", "x")
	want := all(t, s)
	if got := all(t, openStore(t, copyDir(t, dir))); got != want {
		t.Errorf("after a power cut: %s, want %s", got[:40], want[:40])
	}
}
