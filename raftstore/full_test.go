package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"

	"edged/raftstore/vfs"
)

// crowded is the machine's files, and no room for more log while full is set.
type crowded struct {
	vfs.OS
	full *atomic.Bool
}

func (c crowded) Open(op, path string, create bool) (vfs.File, error) {
	f, err := c.OS.Open(op, path, create)
	if err != nil {
		return nil, err
	}
	return crowdedFile{f, c.full}, nil
}

type crowdedFile struct {
	vfs.File
	full *atomic.Bool
}

func (f crowdedFile) WriteAt(op string, p []byte, at int64) error {
	if f.full.Load() && op == "wal.blank" {
		return unix.ENOSPC
	}
	return f.File.WriteAt(op, p, at)
}

// TestRefusedForLackOfRoomIsRefused: a write that was refused with ErrNoSpace
// never takes place. One that raft had when the disk got full may, as other
// members may have it: it is answered as one whose outcome is open.
func TestRefusedForLackOfRoomIsRefused(t *testing.T) {
	disks := map[string]*atomic.Bool{"a": {}, "b": {}, "c": {}}
	c := newCluster(t, func(cfg *Config) { cfg.files = crowded{full: disks[cfg.Name]} }, "a", "b", "c")
	ctx := context.Background()
	name := c.leader()
	a, full := c.members[name], disks[name]
	full.Store(true)
	value := bytes.Repeat([]byte("x"), 200<<10)
	refused, open, done := []string{}, []string{}, []string{}
	for i := 0; len(refused) < 3; i++ {
		if i == 200 {
			t.Fatal("40 MB were written to a full disk")
		}
		key := fmt.Sprint("k", i)
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := a.Put(try, &pb.PutRequest{Key: []byte(key), Value: value})
		cancel()
		switch {
		case err == nil:
			done = append(done, key)
		case errors.Is(err, ErrNoSpace):
			refused = append(refused, key)
		default:
			open = append(open, key)
		}
	}
	if len(open) == 0 {
		t.Error("the write that found the disk full was refused, though the others may have it")
	}
	full.Store(false)
	eventually(t, "the member writing again", func() bool {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := a.Put(try, &pb.PutRequest{Key: []byte("after")})
		return err == nil
	})
	c.same()
	for _, key := range refused {
		if get(t, a.Store, key) != "" {
			t.Errorf("%s was refused and is there", key)
		}
	}
	for _, key := range done {
		if get(t, a.Store, key) == "" {
			t.Errorf("%s was acknowledged and is gone", key)
		}
	}
}
