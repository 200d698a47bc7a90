package fat

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// stamp is the time of every entry: 1980-01-01, FAT's epoch.
const stampDate = 0<<9 | 1<<5 | 1

// Format writes a volume of size bytes. What it does not need to write it
// leaves: the room of files that have none.
func Format(w io.WriterAt, size int64, label string, id uint32, root []File) error {
	g, err := layout(size)
	if err != nil {
		return err
	}
	b := &builder{w: w, g: g, first: rootCluster, next: rootCluster, end: rootCluster + g.clusters}
	if _, err := b.dir(root, 0, label); err != nil {
		return err
	}
	boot, info := bootSectors(g, label, id)
	for _, at := range []int64{0, 6} { // the volume's head and its copy
		if _, err := w.WriteAt(boot, at*sectorBytes); err != nil {
			return err
		}
		if _, err := w.WriteAt(info, (at+1)*sectorBytes); err != nil {
			return err
		}
	}
	head := make([]byte, 8)
	le.PutUint32(head, endOfChain)
	le.PutUint32(head[4:], chainMask)
	for copy := range int64(2) {
		if _, err := w.WriteAt(head, g.entry(0, copy)); err != nil {
			return err
		}
	}
	return b.flush()
}

func bootSectors(g geometry, label string, id uint32) (boot, info []byte) {
	boot, info = make([]byte, sectorBytes), make([]byte, sectorBytes)
	copy(boot, "\xeb\x58\x90edged   ")
	le.PutUint16(boot[11:], sectorBytes)
	boot[13] = byte(g.clusterSectors)
	le.PutUint16(boot[14:], reservedSecs)
	boot[16] = 2 // tables
	boot[21] = 0xF8
	le.PutUint16(boot[24:], 63)
	le.PutUint16(boot[26:], 255)
	le.PutUint32(boot[32:], uint32(g.sectors))
	le.PutUint32(boot[36:], uint32(g.fatSectors))
	le.PutUint32(boot[44:], rootCluster)
	le.PutUint16(boot[48:], 1) // the information sector
	le.PutUint16(boot[50:], 6) // the copy of the head
	boot[64], boot[66] = 0x80, 0x29
	le.PutUint32(boot[67:], id)
	copy(boot[71:], fmt.Sprintf("%-11.11s", strings.ToUpper(label)))
	copy(boot[82:], "FAT32   ")
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], 0xFFFFFFFF) // free: not known
	le.PutUint32(info[492:], 0xFFFFFFFF)
	for _, s := range [][]byte{boot, info} {
		s[510], s[511] = 0x55, 0xAA
	}
	return boot, info
}

// builder puts files into the clusters from next to end.
type builder struct {
	w                io.WriterAt
	g                geometry
	first, next, end uint32
	chain            []uint32 // entries of the table, from first on
}

// alloc takes the next n clusters and chains them.
func (b *builder) alloc(n uint32) (uint32, error) {
	if n > b.end-b.next {
		return 0, ErrFull
	}
	at := b.next
	for i := range n {
		link := at + i + 1
		if i == n-1 {
			link = endOfChain | 7
		}
		b.chain = append(b.chain, link)
	}
	b.next += n
	return at, nil
}

// skip leaves clusters free.
func (b *builder) skip(to uint32) {
	for ; b.next < to; b.next++ {
		b.chain = append(b.chain, 0)
	}
}

func (b *builder) clustersFor(n int64) uint32 {
	return uint32((n + b.g.clusterBytes() - 1) / b.g.clusterBytes())
}

// dir writes a folder and everything in it, and returns its first cluster.
func (b *builder) dir(files []File, parent uint32, label string) (uint32, error) {
	names, err := shortNames(files)
	if err != nil {
		return 0, err
	}
	count := 2 // . and .., or the label
	for i, f := range files {
		count += 1 + names[i].longEntries(f.Name)
	}
	self, err := b.alloc(b.clustersFor(int64(count) * entryBytes))
	if err != nil {
		return 0, err
	}
	out := make([]byte, 0, int64(b.next-self)*b.g.clusterBytes())
	if label != "" {
		out = append(out, dirEntry([11]byte([]byte(fmt.Sprintf("%-11.11s", strings.ToUpper(label)))), 0, attrLabel, 0, 0)...)
	} else {
		out = append(out, dirEntry([11]byte([]byte(".          ")), 0, attrDir, self, 0)...)
		out = append(out, dirEntry([11]byte([]byte("..         ")), 0, attrDir, parent, 0)...)
	}
	inside := self
	if label != "" {
		inside = 0 // the root is cluster 0 to the folders in it
	}
	for i, f := range files {
		at, size, err := b.file(f, inside)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f.Name, err)
		}
		attr := byte(0)
		if f.Dir != nil {
			attr = attrDir
		}
		out = append(out, names[i].long(f.Name)...)
		out = append(out, dirEntry(names[i].short, names[i].flags, attr, at, size)...)
	}
	out = out[:cap(out)]
	_, err = b.w.WriteAt(out, b.g.offset(self))
	return self, err
}

func (b *builder) file(f File, parent uint32) (at uint32, size uint32, err error) {
	if f.Dir != nil && f.Room > 0 {
		at, err = b.room(f, parent)
		return at, 0, err
	}
	if f.Dir != nil {
		at, err = b.dir(f.Dir, parent, "")
		return at, 0, err
	}
	if int64(len(f.Data)) >= 1<<32 {
		return 0, 0, ErrFull
	}
	if len(f.Data) == 0 {
		return 0, 0, nil
	}
	if at, err = b.alloc(b.clustersFor(int64(len(f.Data)))); err != nil {
		return 0, 0, err
	}
	padded := f.Data
	if n := int64(b.next-at) * b.g.clusterBytes(); n > int64(len(padded)) {
		padded = append(make([]byte, 0, n), padded...)[:n]
	}
	_, err = b.w.WriteAt(padded, b.g.offset(at))
	return at, uint32(len(f.Data)), err
}

// roomName holds the clusters of a folder's room that its files do not need,
// so that no other system puts a file there.
const roomName = "RESERVED.BIN"

// room writes a folder into clusters of its own. They begin with a sector of
// the table, so that writing their part of it touches no other file's.
func (b *builder) room(f File, parent uint32) (uint32, error) {
	const perSector = sectorBytes / 4
	start := (b.next + perSector - 1) / perSector * perSector
	n := b.clustersFor(f.Room) / perSector * perSector
	if start > b.end || n > b.end-start {
		return 0, ErrFull
	}
	b.skip(start)
	in := &builder{w: b.w, g: b.g, first: start, next: start, end: start + n}
	at, err := in.fill(f.Dir, parent)
	if err != nil {
		return 0, err
	}
	b.chain = append(b.chain, in.chain...)
	b.next = in.next
	return at, nil
}

// fill writes a folder that takes all of the builder's clusters.
func (b *builder) fill(files []File, parent uint32) (uint32, error) {
	// The filler is the last file; what it gets shows when the others are laid out.
	dry := &builder{w: nowhere{}, g: b.g, first: b.first, next: b.first, end: b.end}
	if _, err := dry.dir(append(files[:len(files):len(files)], File{Name: roomName}), parent, ""); err != nil {
		return 0, err
	}
	rest := int64(b.end-dry.next) * b.g.clusterBytes()
	b.w = &butLast{b.w, b.g.offset(dry.next)}
	return b.dir(append(files[:len(files):len(files)], File{Name: roomName, Data: make([]byte, rest)}), parent, "")
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// butLast passes over the filler, whose content nobody reads.
type butLast struct {
	io.WriterAt
	end int64
}

func (w *butLast) WriteAt(p []byte, off int64) (int, error) {
	if off >= w.end {
		return len(p), nil
	}
	return w.WriterAt.WriteAt(p, off)
}

// flush writes the builder's part of both tables.
func (b *builder) flush() error {
	out := make([]byte, 4*len(b.chain))
	for i, link := range b.chain {
		le.PutUint32(out[4*i:], link)
	}
	for copy := range int64(2) {
		if _, err := b.w.WriteAt(out, b.g.entry(b.first, copy)); err != nil {
			return err
		}
	}
	return nil
}

func dirEntry(name [11]byte, flags, attr byte, cluster, size uint32) []byte {
	e := make([]byte, entryBytes)
	copy(e, name[:])
	e[11], e[12] = attr, flags
	for _, at := range []int{16, 18, 24} {
		le.PutUint16(e[at:], stampDate)
	}
	le.PutUint16(e[20:], uint16(cluster>>16))
	le.PutUint16(e[26:], uint16(cluster))
	le.PutUint32(e[28:], size)
	return e
}

// shortName is a file's name of eight and three characters; if isLong, the
// real one is kept beside it.
type shortName struct {
	short  [11]byte
	flags  byte
	isLong bool
}

func shortNames(files []File) ([]shortName, error) {
	if len(files) > 1<<16/21 {
		return nil, ErrFull
	}
	out, taken := make([]shortName, len(files)), map[[11]byte]bool{}
	for i, f := range files {
		if s, ok := plainShort(f.Name); ok && !taken[s.short] {
			out[i], taken[s.short] = s, true
		}
	}
	for i, f := range files {
		if out[i].short != [11]byte{} {
			continue
		}
		if f.Name == "" || len(f.Name) > 255 || strings.ContainsAny(f.Name, "/\\:*?\"<>|") {
			return nil, fmt.Errorf("%q is no name on FAT", f.Name)
		}
		for n := 1; ; n++ {
			s := alias(f.Name, n)
			if !taken[s] {
				out[i], taken[s] = shortName{short: s, isLong: true}, true
				break
			}
		}
	}
	return out, nil
}

const shortChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

// plainShort is for names that need no long one: 8.3, each part in one case.
func plainShort(name string) (s shortName, ok bool) {
	base, ext, _ := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(ext) > 3 || strings.HasSuffix(name, ".") {
		return s, false
	}
	copy(s.short[:], "           ")
	for i, part := range []string{base, ext} {
		up := strings.ToUpper(part)
		if strings.Trim(up, shortChars) != "" {
			return s, false
		}
		switch part {
		case up:
		case strings.ToLower(part):
			s.flags |= []byte{lowerBase, lowerExt}[i]
		default:
			return s, false
		}
		copy(s.short[8*i:], up)
	}
	return s, true
}

func alias(name string, n int) (s [11]byte) {
	keep := func(part string, max int) string {
		out := strings.Map(func(r rune) rune {
			if strings.ContainsRune(shortChars, r) {
				return r
			}
			return -1
		}, strings.ToUpper(part))
		return out[:min(len(out), max)]
	}
	base, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		base, ext = name[:i], name[i+1:]
	}
	tail := fmt.Sprintf("~%d", n)
	copy(s[:], fmt.Sprintf("%-8s%-3s", keep(base, 8-len(tail))+tail, keep(ext, 3)))
	return s
}

func (s shortName) longEntries(name string) int {
	if !s.isLong {
		return 0
	}
	return (len(utf16.Encode([]rune(name))) + 12) / 13
}

// long is the entries that hold the real name, last part first.
func (s shortName) long(name string) []byte {
	n := s.longEntries(name)
	if n == 0 {
		return nil
	}
	units := utf16.Encode([]rune(name))
	if len(units)%13 != 0 {
		units = append(units, 0)
	}
	for len(units)%13 != 0 {
		units = append(units, 0xFFFF)
	}
	out := make([]byte, 0, n*entryBytes)
	for i := n - 1; i >= 0; i-- {
		e := make([]byte, entryBytes)
		e[0] = byte(i + 1)
		if i == n-1 {
			e[0] |= 0x40
		}
		e[11], e[13] = attrLong, checksum(s.short)
		for j, u := range units[13*i : 13*i+13] {
			le.PutUint16(e[longOffsets[j]:], u)
		}
		out = append(out, e...)
	}
	return out
}

var longOffsets = [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

func checksum(name [11]byte) (sum byte) {
	for _, c := range name {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}
