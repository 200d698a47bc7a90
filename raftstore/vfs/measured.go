package vfs

import (
	"sync/atomic"
	"time"

	"edged/internal/histogram"
)

// Measured is a file system whose operations of one label are timed: those that
// requests wait for.
type Measured struct {
	FS
	label       string
	Sync, Write *histogram.Histogram
	Bytes       atomic.Int64 // written
}

// Measure times the operations of fsys with this label.
func Measure(fsys FS, label string) *Measured {
	const first, buckets = time.Millisecond, 14 // etcd's
	return &Measured{FS: fsys, label: label, Sync: histogram.Doubling(first, buckets), Write: histogram.Doubling(first, buckets)}
}

// Open is part of FS.
func (m *Measured) Open(op, path string, create bool) (File, error) {
	f, err := m.FS.Open(op, path, create)
	if err != nil {
		return nil, err
	}
	return measuredFile{f, m}, nil
}

type measuredFile struct {
	File
	m *Measured
}

func (f measuredFile) WriteAt(op string, p []byte, at int64) error {
	if op != f.m.label {
		return f.File.WriteAt(op, p, at)
	}
	start := time.Now()
	err := f.File.WriteAt(op, p, at)
	f.m.Write.Since(start)
	f.m.Bytes.Add(int64(len(p)))
	return err
}

func (f measuredFile) Sync(op string, dataOnly bool) error {
	if op != f.m.label {
		return f.File.Sync(op, dataOnly)
	}
	start := time.Now()
	err := f.File.Sync(op, dataOnly)
	f.m.Sync.Since(start)
	return err
}
