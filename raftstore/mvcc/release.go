package mvcc

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ReleasePages takes the pages of the file that reads have mapped out of this
// process; they stay in the page cache. The transaction keeps bbolt from moving
// its map meanwhile.
func (db *DB) ReleasePages() error {
	db.swapping.RLock()
	defer db.swapping.RUnlock()
	if db.isClosed() {
		return nil
	}
	return db.bolt.View(func(tx *bolt.Tx) error {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, db.bolt.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
		if errno != 0 {
			return fmt.Errorf("give back pages of %s: %w", db.bolt.Path(), errno)
		}
		return nil
	})
}

func (db *DB) isClosed() bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.closed
}
