package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"edged/internal/atomicfile"
)

// File is an open file.
type File interface {
	io.ReaderAt
	io.Closer
	WriteAt(op string, p []byte, at int64) error
	// Sync makes content and size durable, not the name. With dataOnly the
	// size must be durable already.
	Sync(op string, dataOnly bool) error
	// Allocate gives a new file size bytes that read as zeros, and the room on the
	// disk that they will take.
	Allocate(op string, size int64) error
	Size() (int64, error)
}

// FS is a file system. Errors of files that are not there are fs.ErrNotExist.
type FS interface {
	MkdirAll(op, dir string) error
	// Open opens a file for reading and writing, and makes it if create is set.
	Open(op, path string, create bool) (File, error)
	Rename(op, from, to string) error
	Remove(op, path string) error
	// List returns the names in a folder in their order.
	List(dir string) ([]string, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(op, dir string) error
	// Room is how many bytes the disk that holds dir has left.
	Room(dir string) (int64, error)
}

// OS is the machine's file system.
type OS struct{}

// MkdirAll is part of FS.
func (OS) MkdirAll(_, dir string) error { return os.MkdirAll(dir, 0o700) }

// Open is part of FS.
func (OS) Open(_, path string, create bool) (File, error) {
	flag := os.O_RDWR
	if create {
		flag |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename is part of FS.
func (OS) Rename(_, from, to string) error { return os.Rename(from, to) }

// Remove is part of FS.
func (OS) Remove(_, path string) error { return os.Remove(path) }

// SyncDir is part of FS.
func (OS) SyncDir(_, dir string) error { return atomicfile.SyncDir(dir) }

// Room is part of FS.
func (OS) Room(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // their widths differ between machines
}

// List is part of FS.
func (OS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

type osFile struct{ *os.File }

func (f osFile) WriteAt(_ string, p []byte, at int64) error {
	_, err := f.File.WriteAt(p, at)
	return err
}

func (f osFile) Sync(_ string, dataOnly bool) error {
	if !dataOnly {
		return f.File.Sync()
	}
	return unix.Fdatasync(int(f.Fd()))
}

// Allocate is part of File. Where the file system cannot set room aside, it is
// written.
func (f osFile) Allocate(op string, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if err := f.WriteAt(op, zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// ReadAll returns the content of f.
func ReadAll(f File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if int64(n) != size {
		return nil, fmt.Errorf("read %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return data, nil
}
