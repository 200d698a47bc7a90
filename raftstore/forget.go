package raftstore

import (
	"cmp"
	"context"
	"time"
)

// Defaults of Config, which are etcd's.
const (
	defaultCompactionBatch = 1000
	defaultCompactionSleep = 10 * time.Millisecond
)

// forget carries out compactions in steps: requests go on between them, and the
// deletions are committed as other changes are, by size.
func (s *Store) forget() {
	batch := max(cmp.Or(s.cfg.CompactionBatch, defaultCompactionBatch), 1)
	sleep := cmp.Or(s.cfg.CompactionSleep, defaultCompactionSleep)
	pause := time.NewTimer(0)
	defer pause.Stop()
	more := true
	for {
		var next <-chan time.Time
		if more {
			pause.Reset(sleep)
			next = pause.C
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.node.done:
			return
		case <-s.db.Compacting():
		case <-next:
		}
		if s.db.Pending() > commitBytes && !s.node.low.Load() {
			s.node.wish() // and no further until that is done
			more = true
		} else {
			more = s.db.CompactStep(batch)
		}
	}
}

// waitCompacted returns when this member has forgotten what is before a revision, also
// on disk.
func (s *Store) waitCompacted(ctx context.Context, at int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.node.ctx, func() { cancel(ErrStopped) })()
	if err := s.db.WaitCompacted(ctx, at); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	// Without room the log holds what was forgotten, until there is some.
	if err := s.db.Commit(); err != nil && !noRoom(err) {
		return err
	}
	return nil
}
