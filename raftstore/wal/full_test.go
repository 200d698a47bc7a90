package wal

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/vfs"
)

var errFull error = unix.ENOSPC

// limited is a disk in memory of so many files of a segment.
type limited struct {
	*vfs.Mem
	segments int
}

func (l limited) used() (n int) {
	names, err := l.List("/wal")
	if err != nil {
		return 0
	}
	for _, name := range names {
		f, err := l.Mem.Open("", "/wal/"+name, false)
		if err != nil {
			continue
		}
		if size, err := f.Size(); err == nil {
			n += int((size + 4095) / 4096)
		}
	}
	return n
}

func (l limited) Open(op, path string, create bool) (vfs.File, error) {
	f, err := l.Mem.Open(op, path, create)
	if err != nil {
		return nil, err
	}
	return limitedFile{f, l}, nil
}

type limitedFile struct {
	vfs.File
	disk limited
}

func (f limitedFile) WriteAt(op string, p []byte, at int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if grown := int((at + int64(len(p)) + 4095) / 4096); grown > int((size+4095)/4096) && f.disk.used()+grown-int((size+4095)/4096) > f.disk.segments {
		return errFull
	}
	return f.File.WriteAt(op, p, at)
}

func (f limitedFile) Allocate(op string, size int64) error {
	return f.WriteAt(op, make([]byte, size), 0)
}

// TestReserve: on a full disk the log goes on in what it set aside, a batch larger
// than a segment and an entry larger than a segment included, tells that it does,
// and is refilled when there is room; nothing acknowledged is lost meanwhile.
func TestReserve(t *testing.T) {
	entry := func(i uint64, size int) *raftpb.Entry {
		return &raftpb.Entry{Index: proto.Uint64(i), Term: proto.Uint64(1), Data: make([]byte, size)}
	}
	for name, batch := range map[string][]*raftpb.Entry{
		"small": {entry(2, 100)},
		"many":  {entry(2, 1500), entry(3, 1500), entry(4, 1500), entry(5, 1500)},
		"large": {entry(2, 6000)},
	} {
		t.Run(name, func(t *testing.T) {
			disk := limited{vfs.NewMem(), 3}
			cfg := testConfig(disk.Mem)
			cfg.FS, cfg.Reserve = disk, 2
			l, err := Create(cfg, 7)
			if err != nil {
				t.Fatal(err)
			}
			if l.Low() {
				t.Fatal("the reserve is not there")
			}
			// Up to the end of the only segment.
			if err := l.Append(nil, []*raftpb.Entry{entry(1, 3500)}); err != nil {
				t.Fatal(err)
			}
			last := uint64(1)
			for n := 0; !l.Low(); n++ {
				if n == 100 {
					t.Fatal("the log does not tell that it uses its reserve")
				}
				if err := l.Append(nil, batch); err != nil {
					t.Fatalf("append %d to a full disk: %v", n, err)
				}
				last = batch[len(batch)-1].GetIndex()
				for _, e := range batch {
					e.Index = proto.Uint64(e.GetIndex() + uint64(len(batch)))
				}
			}
			if err := l.Reserve(); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("set aside on a full disk: %v", err)
			}
			_, c, err := Open(cfg)
			if err != nil || c.Entries[len(c.Entries)-1].GetIndex() != last || len(c.Entries) != int(last) {
				t.Fatalf("%d entries, %v, want %d", len(c.Entries), err, last)
			}
			disk.segments = 20
			cfg.FS = disk
			l, _, err = Open(cfg)
			if err != nil || l.Low() {
				t.Fatalf("with room again: %v, low %v", err, l.Low())
			}
		})
	}
}

// TestYield: what the log keeps is given back, but for the last segment of the
// reserve.
func TestYield(t *testing.T) {
	disk := limited{vfs.NewMem(), 3}
	cfg := testConfig(disk.Mem)
	cfg.FS, cfg.Reserve = disk, 2
	l, err := Create(cfg, 7)
	if err != nil {
		t.Fatal(err)
	}
	if gave, err := l.Yield(); err != nil || !gave || disk.used() != 2 || !l.Low() {
		t.Errorf("gave %v, %v: %d segments are there, low %v", gave, err, disk.used(), l.Low())
	}
	if gave, err := l.Yield(); err != nil || gave || disk.used() != 2 {
		t.Errorf("gave %v, %v: %d segments are there", gave, err, disk.used())
	}
}
