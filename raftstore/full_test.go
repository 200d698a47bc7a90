package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"

	"edged/raftstore/vfs"
)

// crowded is the machine's files, and no room for more log while full is set; what
// the log has set aside is there.
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

func (c crowded) Room(dir string) (int64, error) {
	if c.full.Load() {
		return 0, nil
	}
	return c.OS.Room(dir)
}

func (f crowdedFile) Allocate(op string, size int64) error {
	if f.full.Load() {
		return unix.ENOSPC
	}
	return f.File.Allocate(op, size)
}

func (f crowdedFile) WriteAt(op string, p []byte, at int64) error {
	if f.full.Load() && op == "wal.blank" {
		return unix.ENOSPC
	}
	return f.File.WriteAt(op, p, at)
}

// noise is what the log cannot pack.
func noise(n int) []byte {
	out := make([]byte, n)
	draw := rand.New(rand.NewPCG(1, 2))
	for i := range out {
		out[i] = byte(draw.Uint32())
	}
	return out
}

// fillUp writes at a member until it has refused three writes for lack of room.
func fillUp(t *testing.T, a *testMember) (done, refused []string) {
	value := noise(200 << 10)
	for i := 0; len(refused) < 3; i++ {
		if i == 200 {
			t.Fatal("40 MB were written to a full disk")
		}
		key := fmt.Sprint("k", i)
		try, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := a.Put(try, &pb.PutRequest{Key: []byte(key), Value: value})
		cancel()
		switch {
		case err == nil:
			done = append(done, key)
		case errors.Is(err, ErrNoSpace):
			refused = append(refused, key)
		}
	}
	return done, refused
}

// there checks that what was acknowledged is there, and that what was refused is not.
func there(t *testing.T, s *Store, done, refused []string) {
	t.Helper()
	for _, key := range refused {
		if get(t, s, key) != "" {
			t.Errorf("%s was refused and is there", key)
		}
	}
	for _, key := range done {
		if get(t, s, key) == "" {
			t.Errorf("%s was acknowledged and is gone", key)
		}
	}
}

func alarms(t *testing.T, s *Store) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := s.Alarm(ctx, &pb.AlarmRequest{})
	if err != nil {
		t.Errorf("list alarms: %v", err)
		return -1
	}
	return len(resp.Alarms)
}

// TestFullDiskRaisesTheAlarm: a member without room raises NOSPACE. All members then
// refuse writes as etcd's do, and read, delete and compact; when there is room, they
// write again with nobody there to disarm it. A write that was refused never takes
// place.
func TestFullDiskRaisesTheAlarm(t *testing.T) {
	for _, names := range [][]string{{"a"}, {"a", "b", "c"}} {
		t.Run(fmt.Sprint(len(names)), func(t *testing.T) {
			disks := map[string]*atomic.Bool{"a": {}, "b": {}, "c": {}}
			c := newCluster(t, func(cfg *Config) { cfg.files = crowded{full: disks[cfg.Name]} }, names...)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			name := c.leader()
			a := c.members[name]
			if _, err := a.Put(ctx, &pb.PutRequest{Key: []byte("old")}); err != nil {
				t.Fatal(err)
			}
			disks[name].Store(true)
			done, refused := fillUp(t, a)
			for _, m := range c.members {
				eventually(t, "the alarm", func() bool { return alarms(t, m.Store) == 1 })
				if _, err := m.Put(ctx, &pb.PutRequest{Key: []byte("more")}); !errors.Is(err, ErrNoSpace) {
					t.Errorf("%s: a write under the alarm: %v", m.cfg.Name, err)
				}
				there(t, m.Store, done, refused)
			}
			if _, err := a.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("old")}); err != nil {
				t.Errorf("delete under the alarm: %v", err)
			}
			if _, err := a.Compact(ctx, &pb.CompactionRequest{Revision: 2}); err != nil {
				t.Errorf("compact under the alarm: %v", err)
			}
			if !a.Status().NoSpace {
				t.Error("the status does not tell")
			}
			disks[name].Store(false)
			eventually(t, "the member writing again", func() bool {
				_, err := a.Put(ctx, &pb.PutRequest{Key: []byte("after")})
				return err == nil
			})
			if n := alarms(t, a.Store); n != 0 {
				t.Errorf("%d alarms are left", n)
			}
			c.same()
			there(t, a.Store, done, refused)
		})
	}
}

// TestClusterSparesOneFullDisk: where the configuration says so, members go on without
// the one that has no room, a leader included, and raise the alarm when too few are
// left that have.
func TestClusterSparesOneFullDisk(t *testing.T) {
	disks := map[string]*atomic.Bool{"a": {}, "b": {}, "c": {}}
	c := newCluster(t, func(cfg *Config) { cfg.files, cfg.Spare = crowded{full: disks[cfg.Name]}, true }, "a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	value := noise(200 << 10)
	written := 0
	write := func(name string) error {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := c.members[name].Put(try, &pb.PutRequest{Key: fmt.Append(nil, written), Value: value})
		if err == nil {
			written++
		}
		return err
	}
	first := c.leader()
	disks[first].Store(true)
	var other string
	for name := range c.members {
		if name != first {
			other = name
		}
	}
	for written < 50 { // 10 MB
		if err := write(other); errors.Is(err, ErrNoSpace) {
			t.Fatalf("after %d writes, with room on two of three: %v", written, err)
		}
		if ctx.Err() != nil {
			t.Fatalf("%d writes with room on two of three", written)
		}
	}
	if n := alarms(t, c.members[other].Store); n != 0 {
		t.Errorf("%d alarms with room on two of three", n)
	}
	second := first
	eventually(t, "leader that has room", func() bool { second = c.leader(); return second != first })
	disks[second].Store(true)
	var third string
	for name := range c.members {
		if name != first && name != second {
			third = name
		}
	}
	c.members[second].node.lackRoom(unix.ENOSPC) // its log has segments to recycle, and would not ask for long
	eventually(t, "writes being refused", func() bool { return errors.Is(write(third), ErrNoSpace) })
	// Both raise it, unless the first has used up what was set aside: then it can tell
	// nobody.
	eventually(t, "the alarm", func() bool { return len(c.members[third].Alarms()) > 0 })
	// One of those that raised it is gone for good, one gets room.
	if err := c.members[second].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.members, second)
	disks[first].Store(false)
	eventually(t, "writes being accepted", func() bool { return write(third) == nil })
	eventually(t, "no alarm", func() bool { return alarms(t, c.members[third].Store) == 0 })
	c.same()
}
