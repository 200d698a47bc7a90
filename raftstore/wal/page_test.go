package wal

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/vfs"
)

// TestLoneWriteIsOnePage: a small entry that is synced by itself dirties one page
// of the disk, and what fills the page before it is no entry.
func TestLoneWriteIsOnePage(t *testing.T) {
	for _, size := range []int{40, 256, 300, 1000, 1900} {
		cfg := Config{FS: vfs.NewMem(), Dir: "/wal", Logger: silent}
		l, err := Create(cfg, 7)
		if err != nil {
			t.Fatal(err)
		}
		const entries = 500
		pages := 0
		for i := range entries {
			from, seq := l.at, l.seq
			e := &raftpb.Entry{Index: proto.Uint64(uint64(i + 1)), Term: proto.Uint64(1), Data: make([]byte, size)}
			if err := l.Append(nil, []*raftpb.Entry{e}); err != nil {
				t.Fatal(err)
			}
			if seq != l.seq {
				from = 0
			}
			pages += int((l.at-1)/pageBytes - from/pageBytes + 1)
		}
		// Behind a record that ends 8 or 16 bytes before the end of its page there is
		// no room for another.
		if pages > entries+entries/20 {
			t.Errorf("%d entries of %d bytes: %d pages", entries, size, pages)
		}
		if _, c, err := Open(cfg); err != nil || len(c.Entries) != entries {
			t.Errorf("%d entries of %d bytes: read %d, %v", entries, size, len(c.Entries), err)
		}
	}
}
