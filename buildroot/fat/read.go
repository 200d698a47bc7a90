package fat

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// Volume is a FAT32 volume that was opened.
type Volume struct {
	r io.ReaderAt
	g geometry
}

// Extent is a part of a file: bytes of the volume.
type Extent struct{ Offset, Length int64 }

// Open reads a volume's head.
func Open(r io.ReaderAt) (*Volume, error) {
	b := make([]byte, sectorBytes)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read the head of the FAT volume: %w", err)
	}
	g := geometry{sectors: int64(le.Uint32(b[32:])), clusterSectors: int64(b[13]), fatSectors: int64(le.Uint32(b[36:]))}
	if b[510] != 0x55 || b[511] != 0xAA || le.Uint16(b[11:]) != sectorBytes || le.Uint16(b[14:]) != reservedSecs || b[16] != 2 ||
		le.Uint32(b[44:]) != rootCluster || g.clusterSectors == 0 || g.clusterSectors&(g.clusterSectors-1) != 0 {
		return nil, ErrNotFAT
	}
	n := (g.sectors - reservedSecs - 2*g.fatSectors) / g.clusterSectors
	if n < minClusters || n+rootCluster > g.fatSectors*(sectorBytes/4) {
		return nil, ErrNotFAT
	}
	g.clusters = uint32(n)
	return &Volume{r, g}, nil
}

// node is an entry of a folder.
type node struct {
	name    string
	dir     bool
	cluster uint32
	size    int64
}

// clusters follows a chain; one longer than the volume is damaged.
func (v *Volume) clusters(first uint32) ([]uint32, error) {
	var out []uint32
	for c := first; c < endOfChain; {
		if c < rootCluster || c-rootCluster >= v.g.clusters || len(out) > int(v.g.clusters) {
			return nil, fmt.Errorf("%w: a chain leads to cluster %d", ErrNotFAT, c)
		}
		out = append(out, c)
		var b [4]byte
		if _, err := v.r.ReadAt(b[:], v.g.entry(c, 0)); err != nil {
			return nil, err
		}
		c = le.Uint32(b[:]) & chainMask
	}
	return out, nil
}

func (v *Volume) readDir(first uint32) ([]node, error) {
	chain, err := v.clusters(first)
	if err != nil {
		return nil, err
	}
	if len(chain) > 1<<12 {
		return nil, fmt.Errorf("%w: a folder of %d clusters", ErrNotFAT, len(chain))
	}
	var raw []byte
	for _, c := range chain {
		b := make([]byte, v.g.clusterBytes())
		if _, err := v.r.ReadAt(b, v.g.offset(c)); err != nil {
			return nil, err
		}
		raw = append(raw, b...)
	}
	return parseDir(raw), nil
}

func parseDir(raw []byte) (out []node) {
	var units []uint16
	var sum byte
	for ; len(raw) >= entryBytes && raw[0] != 0; raw = raw[entryBytes:] {
		e := raw[:entryBytes]
		switch {
		case e[0] == 0xE5:
			units = nil
			continue
		case e[11] == attrLong:
			if e[0]&0x40 != 0 {
				units, sum = nil, e[13]
			}
			part := make([]uint16, 13)
			for i, at := range longOffsets {
				part[i] = le.Uint16(e[at:])
			}
			units = append(part, units...)
			continue
		case e[11]&attrLabel != 0, e[0] == '.':
			units = nil
			continue
		}
		short := [11]byte(e[:11])
		n := node{name: shortText(short, e[12]), dir: e[11]&attrDir != 0, cluster: uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:])), size: int64(le.Uint32(e[28:]))}
		if units != nil && sum == checksum(short) {
			if i := indexZero(units); i >= 0 {
				units = units[:i]
			}
			n.name = string(utf16.Decode(units))
		}
		units = nil
		out = append(out, n)
	}
	return out
}

func indexZero(units []uint16) int {
	for i, u := range units {
		if u == 0 {
			return i
		}
	}
	return -1
}

func shortText(s [11]byte, flags byte) string {
	base, ext := string(bytes.TrimRight(s[:8], " ")), string(bytes.TrimRight(s[8:], " "))
	if flags&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if flags&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// lookup finds a path; names are compared as FAT does, without case.
func (v *Volume) lookup(path string) (node, error) {
	at := node{dir: true, cluster: rootCluster}
	for _, name := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' }) {
		if !at.dir {
			return at, fmt.Errorf("%s: %w", path, ErrNotExist)
		}
		list, err := v.readDir(at.cluster)
		if err != nil {
			return at, fmt.Errorf("%s: %w", path, err)
		}
		found := false
		for _, n := range list {
			if strings.EqualFold(n.name, name) {
				at, found = n, true
				break
			}
		}
		if !found {
			return at, fmt.Errorf("%s: %w", path, ErrNotExist)
		}
	}
	return at, nil
}

// List returns the names in a folder; those of folders end in a slash.
func (v *Volume) List(path string) ([]string, error) {
	n, err := v.lookup(path)
	if err != nil {
		return nil, err
	}
	list, err := v.readDir(n.cluster)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var out []string
	for _, e := range list {
		if e.dir {
			e.name += "/"
		}
		if e.name != roomName {
			out = append(out, e.name)
		}
	}
	return out, nil
}

// Extents tells where a file's bytes lie, neighbours joined.
func (v *Volume) Extents(path string) ([]Extent, error) {
	n, err := v.lookup(path)
	if err != nil {
		return nil, err
	}
	if n.dir {
		return nil, fmt.Errorf("%s is a folder", path)
	}
	if n.size == 0 {
		return nil, nil
	}
	chain, err := v.clusters(n.cluster)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if n.size > int64(len(chain))*v.g.clusterBytes() {
		return nil, fmt.Errorf("%s: %w: its chain is shorter than its size", path, ErrNotFAT)
	}
	var out []Extent
	for left, i := n.size, 0; left > 0; i++ {
		length := min(left, v.g.clusterBytes())
		left -= length
		at := v.g.offset(chain[i])
		if k := len(out) - 1; k >= 0 && out[k].Offset+out[k].Length == at {
			out[k].Length += length
		} else {
			out = append(out, Extent{at, length})
		}
	}
	return out, nil
}

// ReadFile returns a file's content.
func (v *Volume) ReadFile(path string) ([]byte, error) {
	extents, err := v.Extents(path)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, e := range extents {
		b := make([]byte, e.Length)
		if _, err := v.r.ReadAt(b, e.Offset); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, b...)
	}
	return out, nil
}

// Overwrite replaces a file's bytes where they lie; data must be as long as the
// file.
func (v *Volume) Overwrite(w io.WriterAt, path string, data []byte) error {
	extents, err := v.Extents(path)
	if err != nil {
		return err
	}
	var size int64
	for _, e := range extents {
		size += e.Length
	}
	if size != int64(len(data)) {
		return fmt.Errorf("%s has %d bytes and cannot hold %d in place", path, size, len(data))
	}
	for _, e := range extents {
		if _, err := w.WriteAt(data[:e.Length], e.Offset); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		data = data[e.Length:]
	}
	return nil
}

// ReplaceDir writes another content into a folder that has room
// bytes of its own, as it was given to Format. sync is called between content and
// table.
func (v *Volume) ReplaceDir(w io.WriterAt, path string, room int64, files []File, sync func() error) error {
	n, err := v.lookup(path)
	if err != nil {
		return err
	}
	up, err := v.lookup(path[:max(0, strings.LastIndexByte(path, '/'))])
	if err != nil {
		return err
	}
	parent := up.cluster
	if parent == rootCluster {
		parent = 0
	}
	b := &builder{w: w, g: v.g, first: n.cluster, next: n.cluster}
	b.end = n.cluster + b.clustersFor(room)/(sectorBytes/4)*(sectorBytes/4)
	if !n.dir || n.cluster%(sectorBytes/4) != 0 || b.end > rootCluster+v.g.clusters {
		return fmt.Errorf("%s is not a folder with room of its own", path)
	}
	if _, err := b.fill(files, parent); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	b.w = w
	if err := sync(); err != nil {
		return err
	}
	if err := b.flush(); err != nil {
		return err
	}
	return sync()
}
