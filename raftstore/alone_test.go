package raftstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/vfs"
)

// watched is a disk that counts the syncs of the log that proposers make themselves.
type watched struct {
	vfs.OS
	own, all *atomic.Int64
}

func (w watched) Open(op, path string, create bool) (vfs.File, error) {
	f, err := w.OS.Open(op, path, create)
	return watchedFile{f, w}, err
}

type watchedFile struct {
	vfs.File
	w watched
}

func (f watchedFile) Sync(op string, dataOnly bool) error {
	if op == "wal.append" {
		f.w.all.Add(1)
		stack := make([]byte, 16<<10)
		if strings.Contains(string(stack[:runtime.Stack(stack, false)]), ".proposeAlone(") {
			f.w.own.Add(1)
		}
	}
	return f.File.Sync(op, dataOnly)
}

// TestLoneMemberWritesWithoutBeingWoken: a write to a lone member is carried out by the
// goroutine that asks for it; one of several members has its node decide.
func TestLoneMemberWritesWithoutBeingWoken(t *testing.T) {
	for _, names := range [][]string{{"a"}, {"a", "b", "c"}} {
		disk := watched{own: new(atomic.Int64), all: new(atomic.Int64)}
		c := newCluster(t, func(cfg *Config) { cfg.files = disk }, names...)
		s := c.members[c.leader()].Store
		put(t, s, "first", "1")
		own, all := disk.own.Load(), disk.all.Load()
		const writes = 50
		for i := range writes {
			put(t, s, fmt.Sprint(i), "1")
		}
		own, all = disk.own.Load()-own, disk.all.Load()-all
		if len(names) > 1 {
			if own != 0 {
				t.Errorf("%d of %d syncs in a cluster are by who asks", own, all)
			}
			continue
		}
		// Now and then the node has something to do itself.
		if own < writes/2 || own > all {
			t.Errorf("%d of %d syncs for %d writes are by who asks", own, all, writes)
		}
	}
}

// TestLoneMemberClosesWhileWritten: what was acknowledged is there afterwards, and who
// waits for more is told that the store stopped.
func TestLoneMemberClosesWhileWritten(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	var mu sync.Mutex
	done := map[string]bool{}
	var writers sync.WaitGroup
	started := make(chan struct{}, 4)
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d", w, i)
				_, err := s.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte("1")})
				if errors.Is(err, ErrStopped) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				done[key] = true
				mu.Unlock()
				if i == 20 {
					started <- struct{}{}
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	writers.Wait()
	again := openStore(t, dir)
	for key := range done {
		if get(t, again, key) != "1" {
			t.Errorf("%s was acknowledged and is gone", key)
		}
	}
}
