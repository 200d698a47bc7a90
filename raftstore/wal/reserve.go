package wal

import (
	"errors"
	"fmt"
	pathpkg "path"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"

	"edged/raftstore/vfs"
)

// spareSuffix is what a segment's name ends with while it is kept for a full disk.
const spareSuffix = ".spare.tmp"

// full reports whether err says that the disk has no room.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Low reports whether the log lacks some of its reserve: it was used, or could not
// be set aside.
func (l *Log) Low() bool { return len(l.spare) < l.reserve }

// Segment is the number of the segment that is being appended to.
func (l *Log) Segment() uint64 { return l.seq }

// Reserve sets aside what the reserve lacks, or fails with [ErrNoSpace].
func (l *Log) Reserve() error {
	for n := 0; l.Low(); n++ {
		path := pathpkg.Join(l.dir, fmt.Sprintf("%d%s", n, spareSuffix))
		if l.isSpare(path) {
			continue
		}
		if err := l.setAside(path); full(err) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		} else if err != nil {
			return fmt.Errorf("set room aside for the log: %w", err)
		}
		l.spare = append(l.spare, path)
	}
	return nil
}

func (l *Log) isSpare(path string) bool {
	for _, s := range l.spare {
		if s == path {
			return true
		}
	}
	return false
}

func (l *Log) setAside(path string) error {
	f, err := l.fs.Open("wal.reserve", path, true)
	if err != nil {
		return err
	}
	if err = errors.Join(f.Allocate("wal.reserve", l.segment), f.Close()); err != nil {
		return errors.Join(err, l.fs.Remove("wal.reserve", path))
	}
	return nil
}

// reserveAtStart is Reserve where a lack is no reason not to start.
func (l *Log) reserveAtStart() {
	if err := l.Reserve(); err != nil {
		l.log.Warn("the log has less room set aside for a full disk than it should", "err", err)
	}
}

// blank makes a file of size bytes: a recycled one with what it holds, if there is
// one that fits, or one full of zeros; of the reserve, if the disk is full.
func (l *Log) blank(path string, size int64) (f vfs.File, recycled bool, err error) {
	if n := len(l.free); n > 0 && size == l.segment {
		free := l.free[n-1]
		l.free = l.free[:n-1]
		if err := l.fs.Rename("wal.recycle", free, path); err != nil {
			return nil, false, err
		}
		f, err := l.fs.Open("wal.recycle", path, false)
		return f, true, err
	}
	if f, err = l.fresh(path, size); !full(err) || len(l.spare) == 0 || size != l.segment {
		return f, false, err
	}
	n := len(l.spare) - 1
	if err := l.fs.Rename("wal.spare", l.spare[n], path); err != nil {
		return nil, false, err
	}
	l.spare = l.spare[:n]
	f, err = l.fs.Open("wal.spare", path, false)
	return f, false, err
}

// fresh makes a file of zeros: written, so that appending to it changes data alone.
func (l *Log) fresh(path string, size int64) (vfs.File, error) {
	f, err := l.fs.Open("wal.blank", path, true)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		n := min(int64(len(zeros)), size-at)
		if err := f.WriteAt("wal.blank", zeros[:n], at); err != nil {
			return nil, errors.Join(err, f.Close(), l.fs.Remove("wal.blank", path))
		}
	}
	return f, nil
}

// Yield gives room back to the disk, for others to use: spent segments, or else
// what the log keeps in reserve but for one segment. It reports whether there was
// any.
func (l *Log) Yield() (bool, error) { return l.yield(1) }

func (l *Log) yield(keep int) (bool, error) {
	give := &l.free
	if len(l.free) == 0 {
		give = &l.spare
	} else {
		keep = 0
	}
	gave := false
	for len(*give) > keep {
		last := len(*give) - 1
		if err := l.fs.Remove("wal.yield", (*give)[last]); err != nil {
			return gave, fmt.Errorf("give back what the log keeps: %w", err)
		}
		*give, gave = (*give)[:last], true
	}
	return gave, nil
}

// squeeze makes a segment larger than others where the disk is full: with the room
// of everything that is kept.
func (l *Log) squeeze(size int64) error {
	for {
		gave, err := l.yield(0)
		if err != nil {
			return l.fail(err)
		}
		if !gave {
			return ErrNoSpace
		}
		if err := l.roll(size); !errors.Is(err, ErrNoSpace) {
			return err
		}
	}
}

// appendInParts appends a batch that is too large for the segments in reserve. After
// ErrNoSpace a part of it may be there: it is read as what the whole batch, appended
// again, replaces.
func (l *Log) appendInParts(state *raftpb.HardState, entries []*raftpb.Entry) error {
	half := len(entries) / 2
	if err := l.Append(state, entries[:half]); err != nil {
		return err
	}
	return l.Append(nil, entries[half:])
}
