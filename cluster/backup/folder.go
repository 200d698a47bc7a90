package backup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Entry is a snapshot in a place.
type Entry struct {
	Name     string    `json:"name"`
	Revision int64     `json:"revision"`
	Taken    time.Time `json:"taken"`
	Bytes    int64     `json:"bytes"`
}

// Place is where snapshots lie.
type Place interface {
	// List returns them, the newest last.
	List(context.Context) ([]Entry, error)
	// Put keeps what write writes, which ends with its SHA-256, under a name.
	Put(ctx context.Context, name string, write func(io.Writer) error) error
	// Remove removes one.
	Remove(ctx context.Context, name string) error
	// String names the place to people.
	String() string
}

const (
	nameTime = "20060102T150405Z"
	partial  = ".part"
)

var namePattern = regexp.MustCompile(`^edged-(\d{1,19})-(\d{8}T\d{6}Z)\.snapshot$`)

// nameOf is the name of the snapshot of a revision at a time.
func nameOf(revision int64, taken time.Time) string {
	return fmt.Sprintf("edged-%012d-%s.snapshot", revision, taken.UTC().Format(nameTime))
}

func parseName(name string) (Entry, bool) {
	m := namePattern.FindStringSubmatch(name)
	if m == nil {
		return Entry{}, false
	}
	revision, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return Entry{}, false
	}
	taken, err := time.Parse(nameTime, m[2])
	return Entry{Name: name, Revision: revision, Taken: taken}, err == nil
}

// Folder is a place on this device.
type Folder struct {
	root string // what is opened; path is followed inside it, and no link out of it
	path string
}

// NewFolder is the folder dir, which need not exist.
func NewFolder(dir string) Folder { return Folder{root: dir, path: "."} }

func (f Folder) String() string { return filepath.Join(f.root, f.path) }

// open opens the folder, and makes it if it is to be written to.
func (f Folder) open(write bool) (*os.Root, error) {
	if write {
		if err := os.MkdirAll(f.root, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(f.root)
	if err != nil || f.path == "." {
		return root, err
	}
	defer root.Close()
	if write {
		if err := root.MkdirAll(f.path, 0o700); err != nil {
			return nil, err
		}
	}
	return root.OpenRoot(f.path)
}

// List is part of Place. A folder that is not there holds nothing.
func (f Folder) List(context.Context) ([]Entry, error) {
	root, err := f.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", f, err)
	}
	defer root.Close()
	files, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", f, err)
	}
	var out []Entry
	for _, file := range files {
		e, ok := parseName(file.Name())
		if !ok || !file.Type().IsRegular() {
			continue
		}
		if fi, err := file.Info(); err == nil {
			e.Bytes = fi.Size()
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(a.Taken.Compare(b.Taken), cmp.Compare(a.Revision, b.Revision))
	})
	return out, nil
}

// Put is part of Place.
func (f Folder) Put(_ context.Context, name string, write func(io.Writer) error) (err error) {
	if _, ok := parseName(name); !ok {
		return fmt.Errorf("%q is not a snapshot's name", name)
	}
	root, err := f.open(true)
	if err != nil {
		return fmt.Errorf("open %s: %w", f, err)
	}
	defer root.Close()
	if err := forgetParts(root); err != nil {
		return fmt.Errorf("remove what a cut left in %s: %w", f, err)
	}
	part := name + partial
	file, err := root.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write a snapshot to %s: %w", f, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Remove(part))
		}
	}()
	err = write(file)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = verify(file)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(f.String(), name), err)
	}
	if err := root.Rename(part, name); err != nil {
		return fmt.Errorf("name a snapshot in %s: %w", f, err)
	}
	return syncRoot(root)
}

// forgetParts removes what was not finished.
func forgetParts(root *os.Root) error {
	files, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if name, cut := strings.CutSuffix(file.Name(), partial); cut && namePattern.MatchString(name) {
			errs = append(errs, root.Remove(file.Name()))
		}
	}
	return errors.Join(errs...)
}

func syncRoot(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove is part of Place.
func (f Folder) Remove(_ context.Context, name string) error {
	if _, ok := parseName(name); !ok {
		return fmt.Errorf("%q is not a snapshot's name", name)
	}
	root, err := f.open(false)
	if err != nil {
		return fmt.Errorf("open %s: %w", f, err)
	}
	defer root.Close()
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a snapshot from %s: %w", f, err)
	}
	return nil
}

var errDamaged = errors.New("what was read back is not what was sent: the SHA-256 differs")

// verify reads a snapshot back: what is behind it must be its hash.
func verify(f interface {
	io.ReaderAt
	io.Seeker
}) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size <= sha256.Size {
		return errors.New("it was cut short")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size-sha256.Size)); err != nil {
		return err
	}
	var want [sha256.Size]byte
	if _, err := f.ReadAt(want[:], size-sha256.Size); err != nil {
		return err
	}
	if [sha256.Size]byte(sum.Sum(nil)) != want {
		return errDamaged
	}
	return nil
}
