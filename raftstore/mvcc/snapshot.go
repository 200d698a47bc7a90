package mvcc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"

	"edged/internal/atomicfile"
)

// Snapshot is a consistent copy of the state, in the form of the file. It must
// be closed; until then the file can neither be defragmented nor replaced.
type Snapshot struct {
	// Applied is how much of the log it reflects.
	Applied Applied
	// Conf is the configuration that Advance was given last.
	Conf []byte
	// Size is how many bytes WriteTo writes.
	Size int64

	db    *DB
	tx    *bolt.Tx
	begun time.Time
}

// Snapshot takes one of everything applied so far.
func (db *DB) Snapshot() (*Snapshot, error) {
	db.swapping.RLock()
	s, err := db.snapshot()
	if err != nil {
		db.swapping.RUnlock()
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	return s, nil
}

func (db *DB) snapshot() (*Snapshot, error) {
	db.committing.Lock()
	defer db.committing.Unlock()
	if err := db.commitLocked(true); err != nil {
		return nil, err
	}
	tx, err := db.bolt.Begin(false)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{db: db, tx: tx, Size: tx.Size(), begun: time.Now()}
	probe := DB{}
	if err := probe.loadMeta(tx.Bucket(metaBucket)); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	s.Applied, s.Conf = probe.applied, probe.conf
	return s, nil
}

// WriteTo writes the snapshot.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) { return s.tx.WriteTo(w) }

// Close ends it.
func (s *Snapshot) Close() error {
	err := s.tx.Rollback()
	s.db.stats.snapshot.Since(s.begun)
	s.db.swapping.RUnlock()
	return err
}

// open opens the file with the options that all of it is written with.
func open(path string) (*bolt.DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{
		PageSize: pageSize, InitialMmapSize: initialMmap, FreelistType: bolt.FreelistMapType, NoFreelistSync: true,
	})
	if err != nil {
		return nil, err
	}
	// The file grows in steps of this; bbolt would take 16 MB at once.
	b.AllocSize = 512 << 10
	return b, nil
}

// Defragment rewrites the file without its free pages. Requests go on meanwhile
// but for the moment in which the new file takes the old one's place.
func (db *DB) Defragment() error {
	db.stats.defragmenting.Store(true)
	defer db.stats.defragmenting.Store(false)
	defer db.stats.defragment.Since(time.Now())
	db.swapping.Lock()
	defer db.swapping.Unlock()
	db.committing.Lock()
	defer db.committing.Unlock()
	if err := db.commitLocked(false); err != nil {
		return err
	}
	tmp := db.bolt.Path() + ".defrag"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("defragment: %w", err)
	}
	if err := compactInto(tmp, db.bolt); err != nil {
		return errors.Join(fmt.Errorf("defragment: %w", err), os.Remove(tmp))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.replace(tmp)
}

func compactInto(path string, from *bolt.DB) error {
	to, err := open(path)
	if err != nil {
		return err
	}
	to.NoSync = true // once, at the end
	err = bolt.Compact(to, from, 4<<20)
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}

// replace puts the file at path, which is on disk, in the place of the present
// one. mu, committing and swapping are held.
func (db *DB) replace(path string) error {
	own := db.bolt.Path()
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("close %s: %w", own, err)
	}
	err := os.Rename(path, own)
	if err == nil {
		err = atomicfile.SyncDir(db.dir)
	}
	b, openErr := open(own)
	if openErr != nil {
		// Nothing can be read any more; what was applied is in the log.
		db.closed = true
		db.signal()
		return errors.Join(err, fmt.Errorf("open %s: %w", own, openErr))
	}
	db.bolt = b
	return errors.Join(err, db.measure())
}

// Restore makes the file at path, in the same folder and on disk, the state:
// what was applied before is forgotten. Watchers go on where they are.
func (db *DB) Restore(path string) error {
	db.swapping.Lock()
	defer db.swapping.Unlock()
	db.committing.Lock()
	defer db.committing.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.replace(path); err != nil {
		return err
	}
	db.empty()
	if err := db.load(); err != nil {
		return err
	}
	db.signal()
	return nil
}
