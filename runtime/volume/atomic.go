package volume

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// file is one file of a volume that edged fills.
type file struct {
	data []byte
	mode fs.FileMode
	uid  *int64 // its owner; nil: root
}

// payload maps a path below the volume to its file.
type payload map[string]file

const (
	dataLink      = "..data"
	versionPrefix = "..version-"
)

// write makes p the content of the volume in dir. It does nothing when that is
// so already.
func (p payload) write(dir string, gid *int64) error {
	if p.same(dir) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	next, err := os.MkdirTemp(dir, versionPrefix)
	if err != nil {
		return err
	}
	if err := p.fill(next, gid); err != nil {
		os.RemoveAll(next)
		return err
	}
	tmp := filepath.Join(dir, dataLink+"_tmp")
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Symlink(filepath.Base(next), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := p.link(dir); err != nil {
		return err
	}
	if gid != nil {
		if err := ownDir(dir, *gid); err != nil {
			return err
		}
	}
	return removeVersions(dir, filepath.Base(next))
}

// removeVersions removes what earlier writes made, also those that were cut short.
func removeVersions(dir, but string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), versionPrefix) && e.Name() != but {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p payload) fill(dir string, gid *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range p {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		mode := f.mode
		if gid != nil {
			mode |= 0o440
		}
		if err := os.WriteFile(full, f.data, 0o600); err != nil {
			return err
		}
		if gid != nil || f.uid != nil {
			if err := os.Lchown(full, idOr(f.uid, -1), idOr(gid, -1)); err != nil {
				return err
			}
		}
		if err := os.Chmod(full, mode); err != nil {
			return err
		}
	}
	if gid == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = ownDir(path, *gid)
		}
		return err
	})
}

func idOr(id *int64, def int) int {
	if id == nil {
		return def
	}
	return int(*id)
}

// ownDir gives a folder to a Pod's fsGroup, and what is made in it too.
func ownDir(dir string, gid int64) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Lchown(dir, -1, int(gid)); err != nil {
		return err
	}
	return os.Chmod(dir, fi.Mode().Perm()|0o550|fs.ModeSetgid)
}

// tops are the first elements of the payload's paths.
func (p payload) tops() []string {
	var tops []string
	for name := range p {
		top, _, _ := strings.Cut(name, "/")
		if !slices.Contains(tops, top) {
			tops = append(tops, top)
		}
	}
	return tops
}

// link makes a link for each top and removes those of files that are gone. What is no
// link is something else's mount point.
func (p payload) link(dir string) error {
	tops := p.tops()
	for _, top := range tops {
		err := os.Symlink(path.Join(dataLink, top), filepath.Join(dir, top))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink || e.Name() == dataLink || slices.Contains(tops, e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// same reports whether dir's content is p already.
func (p payload) same(dir string) bool {
	data, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink))
	if err != nil {
		return false
	}
	n := 0
	err = filepath.WalkDir(data, func(full string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(data, full)
		if err != nil {
			return err
		}
		f, ok := p[rel]
		if !ok {
			return fs.ErrNotExist
		}
		have, err := os.ReadFile(full)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, f.data) {
			return fmt.Errorf("%s differs", rel)
		}
		n++
		return nil
	})
	return err == nil && n == len(p)
}
