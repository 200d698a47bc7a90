package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// ErrCut is what every operation answers after the power was cut.
var ErrCut = errors.New("vfs: the power is cut")

// Mem is a file system in memory that remembers what was synced.
type Mem struct {
	// Before, if set, is called before each operation that changes the disk; an
	// error of it is the operation's.
	Before func(op, path string) error

	names   map[string]*inode // as a running program sees them
	durable map[string]*inode // as they are on disk
	pending []nameChange      // from durable to names, in order
	cut     bool
}

type nameChange struct {
	name string
	node *inode // nil: removed
	// with is the other half of a rename, which takes place in the same moment.
	with string
}

type inode struct {
	data   []byte // as a running program sees it
	synced []byte // as it is on disk
	writes []write
}

type write struct {
	at   int64
	data []byte
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	return &Mem{names: map[string]*inode{}, durable: map[string]*inode{}}
}

func (m *Mem) before(op, name string) error {
	if m.cut {
		return ErrCut
	}
	if m.Before != nil {
		return m.Before(op, name)
	}
	return nil
}

// Cut makes every operation on m fail from now on.
func (m *Mem) Cut() { m.cut = true }

// MkdirAll is part of FS. Folders are there as soon as a file is in them.
func (m *Mem) MkdirAll(op, dir string) error { return m.before(op, dir) }

// Open is part of FS.
func (m *Mem) Open(op, name string, create bool) (File, error) {
	if m.cut {
		return nil, ErrCut
	}
	n := m.names[name]
	if n == nil {
		if !create {
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
		if err := m.before(op, name); err != nil {
			return nil, err
		}
		n = &inode{}
		m.names[name] = n
		m.pending = append(m.pending, nameChange{name: name, node: n})
	}
	return &memFile{m, n, name}, nil
}

// Rename is part of FS.
func (m *Mem) Rename(op, from, to string) error {
	if err := m.before(op, to); err != nil {
		return err
	}
	n := m.names[from]
	if n == nil {
		return fmt.Errorf("rename %s: %w", from, fs.ErrNotExist)
	}
	delete(m.names, from)
	m.names[to] = n
	m.pending = append(m.pending, nameChange{name: to, node: n, with: from})
	return nil
}

// Remove is part of FS.
func (m *Mem) Remove(op, name string) error {
	if err := m.before(op, name); err != nil {
		return err
	}
	if m.names[name] == nil {
		return fmt.Errorf("remove %s: %w", name, fs.ErrNotExist)
	}
	delete(m.names, name)
	m.pending = append(m.pending, nameChange{name: name})
	return nil
}

// List is part of FS.
func (m *Mem) List(dir string) ([]string, error) {
	if m.cut {
		return nil, ErrCut
	}
	var names []string
	for name := range m.names {
		if path.Dir(name) == strings.TrimSuffix(dir, "/") {
			names = append(names, path.Base(name))
		}
	}
	if names == nil {
		return nil, fmt.Errorf("list %s: %w", dir, fs.ErrNotExist)
	}
	slices.Sort(names)
	return names, nil
}

// Room is part of FS: there is no end of it.
func (m *Mem) Room(string) (int64, error) { return math.MaxInt64, nil }

// SyncDir is part of FS. Names become durable in the order of their changes, as
// with a journal: those of dir, and with them all that were changed before.
func (m *Mem) SyncDir(op, dir string) error {
	if err := m.before(op, dir); err != nil {
		return err
	}
	for i := len(m.pending) - 1; i >= 0; i-- {
		if path.Dir(m.pending[i].name) == strings.TrimSuffix(dir, "/") {
			for _, c := range m.pending[:i+1] {
				apply(m.durable, c, c.node)
			}
			m.pending = slices.Clone(m.pending[i+1:])
			break
		}
	}
	return nil
}

func apply(names map[string]*inode, c nameChange, n *inode) {
	if c.with != "" {
		delete(names, c.with)
	}
	if n == nil {
		delete(names, c.name)
	} else {
		names[c.name] = n
	}
}

// Crash returns what the disk may hold if the power is cut now: chance decides
// what becomes of everything that was not synced. m itself goes on.
func (m *Mem) Crash(chance *rand.Rand) *Mem {
	out := NewMem()
	copies := map[*inode]*inode{}
	survive := func(n *inode) *inode {
		if copies[n] == nil {
			data := n.crash(chance)
			copies[n] = &inode{data: data, synced: bytes.Clone(data)}
		}
		return copies[n]
	}
	// In the order of names, so that the same chance gives the same disk.
	for _, name := range sortedNames(m.durable) {
		out.durable[name] = survive(m.durable[name])
	}
	for _, c := range m.pending[:chance.IntN(len(m.pending)+1)] {
		var n *inode
		if c.node != nil {
			n = survive(c.node)
		}
		apply(out.durable, c, n)
	}
	for name, n := range out.durable {
		out.names[name] = n
	}
	return out
}

func sortedNames(names map[string]*inode) []string {
	out := make([]string, 0, len(names))
	for name := range names {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// crash decides for each sector of each unsynced write whether it got there.
func (n *inode) crash(chance *rand.Rand) []byte {
	data := bytes.Clone(n.synced)
	mode := chance.IntN(4)
	for _, w := range n.writes {
		for at := w.at; at < w.at+int64(len(w.data)); {
			end := min((at/sector+1)*sector, w.at+int64(len(w.data)))
			lost := mode == 0 || mode > 1 && chance.IntN(2) == 0
			if !lost {
				data = put(data, w.data[at-w.at:end-w.at], at)
			}
			at = end
		}
	}
	return data
}

func put(data, p []byte, at int64) []byte {
	if grow := at + int64(len(p)) - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[at:], p)
	return data
}

type memFile struct {
	m    *Mem
	n    *inode
	name string
}

func (f *memFile) ReadAt(p []byte, at int64) (int, error) {
	if f.m.cut {
		return 0, ErrCut
	}
	if at >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(op string, p []byte, at int64) error {
	if err := f.m.before(op, f.name); err != nil {
		return err
	}
	f.n.data = put(f.n.data, p, at)
	f.n.writes = append(f.n.writes, write{at, bytes.Clone(p)})
	return nil
}

func (f *memFile) Sync(op string, _ bool) error {
	if err := f.m.before(op, f.name); err != nil {
		return err
	}
	for _, w := range f.n.writes {
		f.n.synced = put(f.n.synced, w.data, w.at)
	}
	f.n.writes = nil
	return nil
}

func (f *memFile) Allocate(op string, size int64) error {
	return f.WriteAt(op, make([]byte, size), 0)
}

func (f *memFile) Size() (int64, error) { return int64(len(f.n.data)), nil }
func (f *memFile) Close() error         { return nil }
