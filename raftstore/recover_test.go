package raftstore

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// save writes a snapshot as clients get it.
func save(t *testing.T, s *Store, path string) {
	t.Helper()
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snap.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if _, err := f.Write(sum[:]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRestoredStoreHoldsTheSnapshot(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i := range 20 {
		put(t, s, fmt.Sprint("k", i%7), fmt.Sprint(i))
	}
	want := all(t, s)
	file := filepath.Join(t.TempDir(), "snapshot")
	save(t, s, file)
	put(t, s, "later", "x")

	dir := filepath.Join(t.TempDir(), "store")
	if err := Restore(RestoreConfig{Dir: dir, Snapshot: file, Name: "n"}); err != nil {
		t.Fatal(err)
	}
	r := openStore(t, dir)
	if got := all(t, r); got != want {
		t.Errorf("restored %s, want %s", got, want)
	}
	put(t, r, "after", "x")
	want = all(t, r)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := all(t, openStore(t, dir)); got != want {
		t.Errorf("reopened %s, want %s", got, want)
	}
	if err := Restore(RestoreConfig{Dir: dir, Snapshot: file}); err == nil || !strings.Contains(err.Error(), "holds a store already") {
		t.Errorf("restoring over a store: %v", err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[5000] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "store")
	if err := Restore(RestoreConfig{Dir: damaged, Snapshot: file}); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("restoring a damaged snapshot: %v", err)
	}
	if left, err := os.ReadDir(damaged); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// Two of three members are lost: the third goes on alone with everything that
// was acknowledged.
func TestForceNewAfterTheQuorumIsLost(t *testing.T) {
	c := newCluster(t, nil, "a", "b", "c")
	lead := c.members[c.leader()].Store
	for i := range 30 {
		put(t, lead, fmt.Sprint("k", i), "v")
	}
	c.same()
	want, cluster := all(t, lead), lead.ClusterID()
	left := c.stop(c.follower()).Dir
	for _, name := range c.names() {
		c.stop(name)
	}
	if err := ForceNew(left, "", nil); err != nil {
		t.Fatal(err)
	}
	alone := openStore(t, left)
	if got := all(t, alone); got != want {
		t.Errorf("alone it holds %s, want %s", got, want)
	}
	put(t, alone, "after", "x")
	if alone.ClusterID() == cluster {
		t.Error("the new cluster has the old one's id")
	}
}
