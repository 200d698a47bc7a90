package raftstore

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
)

// FuzzSnapshotFile: whatever a snapshot's file holds, it is restored or refused
// with nothing left that a store would start from.
func FuzzSnapshotFile(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add(make([]byte, 512), true)
	f.Add(make([]byte, 4*4096+32), false)
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\xed\xda\x0c\xed"), true)
	f.Fuzz(func(t *testing.T, data []byte, hashed bool) {
		dir, err := os.MkdirTemp("/dev/shm", "snapshot-fuzz-")
		if err != nil {
			dir = t.TempDir()
		}
		defer os.RemoveAll(dir)
		if hashed {
			sum := sha256.Sum256(data)
			data = append(data[:len(data):len(data)], sum[:]...)
		}
		file := filepath.Join(dir, "snapshot")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		err = Restore(RestoreConfig{Dir: filepath.Join(dir, "store"), Snapshot: file, Name: "n", NoHash: !hashed})
		if err == nil {
			return
		}
		for _, name := range []string{"wal", "state.db", "state.db.restore"} {
			if _, err := os.Stat(filepath.Join(dir, "store", name)); err == nil {
				t.Errorf("after a snapshot that was refused there is %s", name)
			}
		}
	})
}
