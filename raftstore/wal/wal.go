package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	pathpkg "path"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/vfs"
)

var (
	// ErrCorrupt marks damage that a power cut cannot explain.
	ErrCorrupt = errors.New("log is damaged in the middle")
	// ErrNoSpace says that the disk has no room for another segment.
	ErrNoSpace = errors.New("no space for the log")
)

const (
	version      = 2
	headerBytes  = 17
	segmentBytes = 1 << 20
	// maxFree is how many spent segments are kept for recycling: as many as one
	// commit of the applied state sets free under load.
	maxFree = 6
	// pageBytes is what a disk writes at least.
	pageBytes = 4096
	// headRoom is more than what a segment begins with.
	headRoom = 256
	// maxRecordBytes bounds what a damaged length can make us allocate. The
	// largest request is 1.5 MiB; etcd lets operators raise that.
	maxRecordBytes = 512 << 20

	// freeSuffix is what a segment's name ends with while it waits for recycling.
	freeSuffix = ".free.tmp"

	kindHead     = 1
	kindEntry    = 2
	kindState    = 3
	kindSnapshot = 4
	kindReset    = 5
	kindIntent   = 6
	kindPacked   = 7
	kindOpened   = 8
	kindLast     = kindOpened

	// flagRecycled in a head says that behind the records are those of a former
	// life of the file.
	flagRecycled = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot is where the log's content begins: everything up to Index is in the
// applied state.
type Snapshot struct{ Index, Term uint64 }

// Content is what Open found.
type Content struct {
	MemberID uint64
	State    *raftpb.HardState
	Snapshot Snapshot
	Entries  []*raftpb.Entry // those after Snapshot
	// Intent is the snapshot that was about to replace the applied state and
	// everything in the log, zero for none. Whether it did shows in the state:
	// if so, Reset must follow.
	Intent Snapshot
}

// segment describes a file that is not being appended to: the last entry in it,
// so that it can be dropped when a snapshot covers that.
type segment struct {
	seq, last uint64
}

// Log appends records.
type Log struct {
	dir     string
	fs      vfs.FS
	log     *slog.Logger
	member  uint64
	segment int64 // bytes of a segment

	f       vfs.File
	form    form
	stale   bool // behind at there may be bytes that nobody cleared
	seq     uint64
	size    int64 // of the segment
	at      int64 // where the next record goes
	durable int64
	crc     uint32
	last    uint64 // index of the newest entry
	state   *raftpb.HardState
	snap    Snapshot
	spent   []segment
	free    []string // files to recycle
	spare   []string // files of zeros for when the disk is full
	reserve int      // how many there should be
	buf     []byte
	raw     []byte // entries to be packed
	failed  error  // a write or sync that failed: nothing may follow it
}

// Config says where a log is.
type Config struct {
	FS     vfs.FS
	Dir    string
	Logger *slog.Logger
	// SegmentBytes is the size of a segment, 0 for 1 MiB.
	SegmentBytes int64
	// Reserve is how many segments are set aside for a full disk: see Log.Low.
	Reserve int
}

func (c Config) log() *Log {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = segmentBytes
	}
	return &Log{dir: c.Dir, fs: c.FS, log: c.Logger, segment: c.SegmentBytes, reserve: c.Reserve, state: &raftpb.HardState{}}
}

// Create makes an empty log for a new member, where there must be none.
func Create(c Config, member uint64) (*Log, error) {
	if err := c.FS.MkdirAll("wal.create", c.Dir); err != nil {
		return nil, fmt.Errorf("create the log's folder: %w", err)
	}
	l := c.log()
	l.member = member
	if err := l.roll(l.segment); err != nil {
		return nil, err
	}
	if err := l.sync(); err != nil {
		return nil, err
	}
	l.reserveAtStart()
	return l, nil
}

// Exists reports whether dir holds a log.
func Exists(fsys vfs.FS, dir string) (bool, error) {
	seqs, err := segments(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(seqs) > 0, err
}

func segments(fsys vfs.FS, dir string) ([]uint64, error) {
	files, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, file := range files {
		name, ok := strings.CutSuffix(file, ".wal")
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(name, 16, 64)
		if err != nil || len(name) != 16 {
			return nil, fmt.Errorf("%s is not a segment of the log", pathpkg.Join(dir, file))
		}
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return seqs, nil
}

func (l *Log) path(seq uint64) string { return pathpkg.Join(l.dir, fmt.Sprintf("%016x.wal", seq)) }

// Open reads the log and prepares it for appending.
func Open(cfg Config) (*Log, Content, error) {
	seqs, err := segments(cfg.FS, cfg.Dir)
	if err != nil {
		return nil, Content{}, err
	}
	l := cfg.log()
	c := Content{State: l.state}
	for i, seq := range seqs {
		if i > 0 && seq != seqs[i-1]+1 {
			return nil, c, fmt.Errorf("%w: %s is missing", ErrCorrupt, l.path(seqs[i-1]+1))
		}
		if err := l.read(seq, i == 0, i == len(seqs)-1, &c); err != nil {
			return nil, c, err
		}
	}
	l.removeStale()
	if l.f == nil {
		// Cut while a segment was being made: go on in a new one.
		if err := l.roll(l.segment); err != nil {
			return nil, c, err
		}
		if err := l.sync(); err != nil {
			return nil, c, err
		}
	}
	l.reserveAtStart()
	c.MemberID, c.State, c.Snapshot = l.member, l.state, l.snap
	return l, c, nil
}

// removeStale removes files that were being prepared when the power went, and
// finds those to recycle.
func (l *Log) removeStale() {
	files, err := l.fs.List(l.dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if !strings.HasSuffix(f, ".tmp") {
			continue
		}
		path := pathpkg.Join(l.dir, f)
		keep := &l.free
		most := maxFree
		switch {
		case strings.HasSuffix(f, spareSuffix):
			keep, most = &l.spare, l.reserve
		case !strings.HasSuffix(f, freeSuffix):
			most = 0
		}
		if len(*keep) < most {
			if size, err := l.sizeOf(path); err == nil && size == l.segment {
				*keep = append(*keep, path)
				continue
			}
		}
		if err := l.fs.Remove("wal.stale", path); err != nil {
			l.log.Warn("a leftover of the log stays", "file", f, "err", err)
		}
	}
}

// read reads one segment into c. The last one stays open for appending.
func (l *Log) read(seq uint64, first, last bool, c *Content) error {
	path := l.path(seq)
	f, err := l.fs.Open("wal.read", path, false)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	data, err := vfs.ReadAll(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	crc, at, end := l.crc, int64(0), int64(0)
	form := formOf(data, seq)
	var lastEntry uint64
	for {
		r, ok := form.parse(data, at, crc, first && at == 0)
		if !ok {
			end = at
			break
		}
		if at == 0 {
			if r.kind != kindHead || binary.LittleEndian.Uint64(r.payload[1:]) != seq {
				end = 0
				break
			}
			if r.payload[0] > version {
				return fmt.Errorf("%s is of version %d, this program understands %d: use a newer edged", path, r.payload[0], version)
			}
			l.member = binary.LittleEndian.Uint64(r.payload[9:])
		} else if err := l.take(r, c); err != nil {
			return fmt.Errorf("%s at %d: %w", path, at, err)
		}
		if n := len(c.Entries); n > 0 {
			lastEntry = c.Entries[n-1].GetIndex()
		} else {
			lastEntry = l.snap.Index
		}
		crc, at = r.crc, r.next
	}
	if _, alone := form.parse(data, 0, 0, true); end == 0 && alone {
		return fmt.Errorf("%w: the end of the segment before %s; %s", ErrCorrupt, path, advice)
	}
	if err := l.judge(path, form, data, end, last); err != nil {
		return err
	}
	if !last {
		l.crc = crc
		l.spent = append(l.spent, segment{seq, lastEntry})
		return nil
	}
	if end == 0 {
		// Its head never reached the disk: the segment was new and empty.
		if first {
			return fmt.Errorf("%w: %s has no head; restore a snapshot with `edged snapshot restore`", ErrCorrupt, path)
		}
		return l.fs.Remove("wal.headless", path)
	}
	if form.recycled {
		// The next record sets what follows it apart from what is there.
		l.stale = true
	} else if err := clearTail(f, data, end); err != nil {
		return fmt.Errorf("cut the torn tail of %s: %w", path, err)
	}
	l.f, l.form, l.seq, l.size, l.at, l.durable, l.crc, l.last = f, form, seq, int64(len(data)), end, end, crc, lastEntry
	keep = true
	return nil
}

const advice = "restore a snapshot with `edged snapshot restore`, or remove this device and let it join again"

// judge tells a torn tail from damage in the middle. data[end:] is what no
// record could be read from.
func (l *Log) judge(path string, form form, data []byte, end int64, last bool) error {
	if !last && form.recycled {
		return nil // the next segment's head tells whether the chain is whole
	}
	torn := int64(0)
	for i := len(data) - 1; i >= int(end); i-- {
		if data[i] != 0 {
			torn = int64(i) + 1 - end
			break
		}
	}
	if torn == 0 {
		return nil
	}
	if !last {
		return fmt.Errorf("%w: %s at byte %d, with segments after it; %s", ErrCorrupt, path, end, advice)
	}
	for at := end; at+headerBytes <= int64(len(data)); at += 8 {
		if d, ok := form.durableMark(data, at); ok && d > end {
			return fmt.Errorf("%w: %s at byte %d, which was on disk when byte %d was written; %s", ErrCorrupt, path, end, at, advice)
		}
	}
	if form.recycled {
		return nil // what is torn cannot be told from what is old
	}
	l.log.Warn("cut a torn tail off the log: it was never acknowledged", "file", path, "at", end, "bytes", torn)
	return nil
}

// clearTail zeroes what is behind end, so that stale bytes can never be taken
// for records.
func clearTail(f vfs.File, data []byte, end int64) error {
	dirty := false
	for _, b := range data[end:] {
		if b != 0 {
			dirty = true
			break
		}
	}
	if !dirty {
		return nil
	}
	if err := f.WriteAt("wal.cut", make([]byte, int64(len(data))-end), end); err != nil {
		return err
	}
	return f.Sync("wal.cut", false)
}

// take adds a record to what has been read.
func (l *Log) take(r parsed, c *Content) error {
	switch r.kind {
	case kindEntry:
		return l.takeEntry(r.payload, c)
	case kindPacked:
		return unpack(r.payload, func(entry []byte) error { return l.takeEntry(entry, c) })
	case kindOpened: // was written for its crc, or for its length
	case kindState:
		l.state = new(raftpb.HardState)
		if err := proto.Unmarshal(r.payload, l.state); err != nil {
			return fmt.Errorf("%w: a hard state does not decode: %w", ErrCorrupt, err)
		}
	case kindSnapshot, kindReset, kindIntent:
		if len(r.payload) != 16 {
			return fmt.Errorf("%w: a snapshot's place is %d bytes", ErrCorrupt, len(r.payload))
		}
		snap := Snapshot{binary.LittleEndian.Uint64(r.payload), binary.LittleEndian.Uint64(r.payload[8:])}
		if r.kind == kindIntent {
			c.Intent = snap
			return nil
		}
		l.snap = snap
		if r.kind == kindReset {
			c.Entries, c.Intent = nil, Snapshot{}
			return nil
		}
		i := slices.IndexFunc(c.Entries, func(e *raftpb.Entry) bool { return e.GetIndex() > l.snap.Index })
		if i < 0 {
			i = len(c.Entries)
		}
		c.Entries = c.Entries[i:]
	default:
		return fmt.Errorf("%w: record of kind %d", ErrCorrupt, r.kind)
	}
	return nil
}

func (l *Log) takeEntry(data []byte, c *Content) error {
	e := new(raftpb.Entry)
	if err := proto.Unmarshal(data, e); err != nil {
		return fmt.Errorf("%w: an entry does not decode: %w", ErrCorrupt, err)
	}
	// A new leader overwrites entries that were never committed.
	for len(c.Entries) > 0 && c.Entries[len(c.Entries)-1].GetIndex() >= e.GetIndex() {
		c.Entries = c.Entries[:len(c.Entries)-1]
	}
	if e.GetIndex() > l.snap.Index {
		c.Entries = append(c.Entries, e)
	}
	return nil
}

// begin starts a batch in l.buf. The first one in a segment whose end was found
// among old bytes changes the crc that the next record chains to, by chance: no
// record that lies there already can follow.
func (l *Log) begin() error {
	l.buf = l.buf[:0]
	if !l.stale {
		return nil
	}
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return l.fail(fmt.Errorf("draw a number: %w", err))
	}
	l.encode(kindOpened, nonce[:])
	return nil
}

// encode adds a record to the batch in l.buf.
func (l *Log) encode(kind byte, payload []byte) {
	at := l.beginRecord(kind)
	l.buf = append(l.buf, payload...)
	l.endRecord(at)
}

func (l *Log) encodeMessage(kind byte, m proto.Message) (err error) {
	at := l.beginRecord(kind)
	if l.buf, err = (proto.MarshalOptions{}).MarshalAppend(l.buf, m); err != nil {
		return err
	}
	l.endRecord(at)
	return nil
}

func (l *Log) beginRecord(kind byte) (at int) {
	at = len(l.buf)
	l.buf = append(l.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	l.buf = binary.LittleEndian.AppendUint64(l.buf, uint64(l.durable))
	l.buf = append(l.buf, kind)
	return at
}

func (l *Log) endRecord(at int) {
	binary.LittleEndian.PutUint32(l.buf[at:], uint32(len(l.buf)-at-headerBytes))
	l.crc = crc32.Update(crc32.Update(l.crc, castagnoli, l.form.salt), castagnoli, l.buf[at+8:])
	binary.LittleEndian.PutUint32(l.buf[at+4:], l.crc)
	for len(l.buf)%8 != 0 {
		l.buf = append(l.buf, 0)
	}
}

// Append makes a batch durable: when it returns nil, it is on disk. state may
// be nil for no change. After [ErrNoSpace] the same batch, and no other, may be
// appended again; any other error is final.
func (l *Log) Append(state *raftpb.HardState, entries []*raftpb.Entry) error {
	if l.failed != nil {
		return l.failed
	}
	if state == nil && len(entries) == 0 {
		return nil
	}
	need := 128
	for _, e := range entries {
		need += proto.Size(e) + headerBytes + 8
	}
	if l.at+int64(need) > l.size {
		size := max(l.segment, int64(need)+headRoom)
		err := l.roll(size)
		if errors.Is(err, ErrNoSpace) && size > l.segment {
			if len(entries) > 1 {
				return l.appendInParts(state, entries)
			}
			err = l.squeeze(size)
		}
		if err != nil {
			return err
		}
	}
	if err := l.begin(); err != nil {
		return err
	}
	if err := l.encodeEntries(entries, need); err != nil {
		return l.fail(err)
	}
	if state != nil {
		if err := l.encodeMessage(kindState, state); err != nil {
			return l.fail(fmt.Errorf("encode the hard state: %w", err))
		}
		l.state = state
	}
	l.fill()
	return l.flush()
}

// fill adds a record without meaning up to the end of the page, when the next
// batch, of about the size of this one, would end on the page after it: a lone
// write is one page then, not sometimes two.
func (l *Log) fill() {
	end := l.at + int64(len(l.buf))
	left := (pageBytes - end%pageBytes) % pageBytes
	if left <= headerBytes || left >= int64(len(l.buf)) || len(l.buf) > pageBytes/2 || end+left > l.size || l.form.version == 1 {
		return
	}
	at := l.beginRecord(kindOpened)
	l.buf = append(l.buf, make([]byte, left-headerBytes)...)
	l.endRecord(at)
}

// Note writes how far the log is committed, without making that durable: after a
// crash of the program it is known, after a power cut perhaps. It is not worth a
// segment; the next Append carries it otherwise.
func (l *Log) Note(state *raftpb.HardState) error {
	if l.failed != nil {
		return l.failed
	}
	if l.at+int64(proto.Size(state))+128 > l.size {
		return nil
	}
	if err := l.begin(); err != nil {
		return err
	}
	if err := l.encodeMessage(kindState, state); err != nil {
		return l.fail(fmt.Errorf("encode the hard state: %w", err))
	}
	l.state = state
	return l.write()
}

func (l *Log) flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	if err := l.write(); err != nil {
		return err
	}
	return l.sync()
}

// write writes what is encoded.
func (l *Log) write() error {
	if err := l.f.WriteAt("wal.append", l.buf, l.at); err != nil {
		return l.fail(fmt.Errorf("append to the log: %w", err))
	}
	l.at += int64(len(l.buf))
	l.stale = false
	// One large batch must not be paid for ever after.
	if l.buf = l.buf[:0]; cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	if l.raw = l.raw[:0]; cap(l.raw) > keepBuffer {
		l.raw = nil
	}
	return nil
}

func (l *Log) sync() error {
	if err := l.f.Sync("wal.append", true); err != nil {
		return l.fail(fmt.Errorf("sync the log: %w", err))
	}
	l.durable = l.at
	return nil
}

// fail remembers that the log's tail is unknown: after a failed write or sync
// the kernel may have dropped the pages, so nothing more may be acknowledged.
func (l *Log) fail(err error) error {
	l.failed = err
	return err
}

// roll goes on in a new segment of at least size bytes.
func (l *Log) roll(size int64) error {
	seq := l.seq + 1
	if l.f == nil && len(l.spent) > 0 {
		seq = l.spent[len(l.spent)-1].seq + 1
	}
	tmp := l.path(seq) + ".tmp"
	f, recycled, err := l.blank(tmp, size)
	if full(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return l.fail(fmt.Errorf("make a segment of the log: %w", err))
	}
	if err := l.enter(f, recycled, tmp, seq, size); err != nil {
		return l.fail(err)
	}
	return nil
}

// enter makes f, a file at tmp, the segment to append to.
func (l *Log) enter(f vfs.File, recycled bool, tmp string, seq uint64, size int64) error {
	if l.f != nil {
		if l.durable < l.at { // what was noted; the new segment's chain begins with it
			if err := l.sync(); err != nil {
				f.Close()
				return err
			}
		}
		l.spent = append(l.spent, segment{l.seq, l.last})
		if err := l.f.Close(); err != nil {
			f.Close()
			return fmt.Errorf("close a segment of the log: %w", err)
		}
	}
	l.f, l.seq, l.size, l.at, l.durable, l.stale = f, seq, size, 0, 0, false
	l.form = form{version: version, recycled: recycled, salt: binary.LittleEndian.AppendUint64(nil, seq)}
	l.buf = l.buf[:0]
	head := make([]byte, headBytes)
	head[0] = version
	if recycled {
		head[headBytes-1] = flagRecycled
	}
	binary.LittleEndian.PutUint64(head[1:], seq)
	binary.LittleEndian.PutUint64(head[9:], l.member)
	binary.LittleEndian.PutUint32(head[17:], l.crc)
	l.encode(kindHead, head)
	// Every segment can be the first one some day.
	l.encodeSnapshot()
	if proto.Size(l.state) > 0 {
		if err := l.encodeMessage(kindState, l.state); err != nil {
			return fmt.Errorf("encode the hard state: %w", err)
		}
	}
	if err := f.WriteAt("wal.head", l.buf, 0); err != nil {
		return fmt.Errorf("write the head of a segment: %w", err)
	}
	l.at = int64(len(l.buf))
	if err := f.Sync("wal.head", recycled); err != nil {
		return fmt.Errorf("sync the head of a segment: %w", err)
	}
	l.durable = l.at
	if err := l.fs.Rename("wal.name", tmp, l.path(seq)); err != nil {
		return fmt.Errorf("name a segment of the log: %w", err)
	}
	return l.fs.SyncDir("wal.name", l.dir)
}

func (l *Log) encodeSnapshot() { l.encodePlace(kindSnapshot, l.snap) }

func (l *Log) encodePlace(kind byte, s Snapshot) {
	b := binary.LittleEndian.AppendUint64(nil, s.Index)
	l.encode(kind, binary.LittleEndian.AppendUint64(b, s.Term))
}

// Intend records that the state at s is about to replace the applied state and
// everything in the log.
func (l *Log) Intend(s Snapshot) error { return l.place(kindIntent, s) }

// place appends one record about a snapshot.
func (l *Log) place(kind byte, s Snapshot) error {
	if l.failed != nil {
		return l.failed
	}
	if l.at+128 > l.size {
		if err := l.roll(l.segment); err != nil {
			return err
		}
	}
	if err := l.begin(); err != nil {
		return err
	}
	l.encodePlace(kind, s)
	return l.flush()
}

// Reset drops every entry: the log goes on after s, which the applied state on
// disk reflects.
func (l *Log) Reset(s Snapshot) error {
	if err := l.place(kindReset, s); err != nil {
		return err
	}
	l.snap, l.last = s, s.Index
	return l.dropSpent(len(l.spent))
}

// Compact records that everything up to s is in the applied state on disk, and
// drops segments that hold nothing newer. It costs a sync only when a segment
// goes.
func (l *Log) Compact(s Snapshot) error {
	if l.failed != nil {
		return l.failed
	}
	n := 0
	for n < len(l.spent) && l.spent[n].last <= s.Index {
		n++
	}
	l.snap = s
	if n == 0 {
		return nil
	}
	if l.at+128 > l.size {
		if err := l.roll(l.segment); err != nil {
			return err
		}
	} else {
		if err := l.begin(); err != nil {
			return err
		}
		l.encodeSnapshot()
		if err := l.flush(); err != nil {
			return err
		}
	}
	return l.dropSpent(n)
}

// dropSpent drops the oldest n segments.
func (l *Log) dropSpent(n int) error {
	if n == 0 {
		return nil
	}
	for _, s := range l.spent[:n] {
		if err := l.drop(s.seq); err != nil {
			return fmt.Errorf("drop a spent segment of the log: %w", err)
		}
	}
	l.spent = append([]segment(nil), l.spent[n:]...)
	return l.fs.SyncDir("wal.drop", l.dir)
}

// drop keeps a segment for recycling, or removes it when there are enough.
func (l *Log) drop(seq uint64) error {
	path := l.path(seq)
	size, err := l.sizeOf(path)
	if err != nil {
		return err
	}
	if len(l.free) >= maxFree || size != l.segment {
		return l.fs.Remove("wal.drop", path)
	}
	free := path + freeSuffix
	if err := l.fs.Rename("wal.drop", path, free); err != nil {
		return err
	}
	l.free = append(l.free, free)
	return nil
}

func (l *Log) sizeOf(path string) (int64, error) {
	f, err := l.fs.Open("wal.drop", path, false)
	if err != nil {
		return 0, err
	}
	size, err := f.Size()
	return size, errors.Join(err, f.Close())
}

// Close closes the file; everything appended is on disk already.
func (l *Log) Close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}
