package wal

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const (
	// packFrom is from how many bytes on a batch is packed, or an eighth of a
	// segment: one that fits in two pages gains none by it.
	packFrom = 8 << 10
	// maxRatio bounds what a damaged record can make us allocate: no copy in the
	// format is longer than 64 bytes for 3.
	maxRatio = 32
	// keepBuffer is how large a buffer stays from one batch to the next.
	keepBuffer = 256 << 10

	codecSnappy = 1
)

// encodeEntries adds entries to the batch, in one packed record if that is
// shorter. need is about their size.
func (l *Log) encodeEntries(entries []*raftpb.Entry, need int) error {
	packed := false
	if need >= min(packFrom, int(l.segment/8)) && l.form.version > 1 {
		var err error
		if packed, err = l.pack(entries); err != nil {
			return err
		}
	}
	for _, e := range entries {
		l.last = e.GetIndex()
		if packed {
			continue
		}
		if err := l.encodeMessage(kindEntry, e); err != nil {
			return fmt.Errorf("encode entry %d: %w", e.GetIndex(), err)
		}
	}
	return nil
}

// pack adds entries as one record: the codec, then, compressed, each entry after
// its length, uint32 LE. It reports whether it was worth it.
func (l *Log) pack(entries []*raftpb.Entry) (bool, error) {
	l.raw = l.raw[:0]
	for _, e := range entries {
		at := len(l.raw)
		l.raw = append(l.raw, 0, 0, 0, 0)
		var err error
		if l.raw, err = (proto.MarshalOptions{}).MarshalAppend(l.raw, e); err != nil {
			return false, fmt.Errorf("encode entry %d: %w", e.GetIndex(), err)
		}
		binary.LittleEndian.PutUint32(l.raw[at:], uint32(len(l.raw)-at-4))
	}
	n := s2.MaxEncodedLen(len(l.raw))
	if n < 0 {
		return false, nil
	}
	at := l.beginRecord(kindPacked)
	l.buf = append(l.buf, codecSnappy)
	from := len(l.buf)
	if cap(l.buf)-from < n {
		l.buf = append(make([]byte, 0, from+n+64), l.buf...)
	}
	block := s2.EncodeSnappy(l.buf[from:from+n:from+n], l.raw)
	if len(block) > len(l.raw)/8*7 {
		l.buf = l.buf[:at]
		return false, nil
	}
	l.buf = l.buf[:from+len(block)]
	l.endRecord(at)
	return true, nil
}

// unpack calls f for each entry of a packed record.
func unpack(payload []byte, f func(entry []byte) error) error {
	block := payload[1:]
	if payload[0] != codecSnappy {
		return fmt.Errorf("entries are packed by codec %d: use a newer edged", payload[0])
	}
	n, err := s2.DecodedLen(block)
	if err != nil || n > maxRatio*len(block)+64 {
		return fmt.Errorf("%w: packed entries do not decode", ErrCorrupt)
	}
	raw, err := s2.Decode(make([]byte, n), block)
	if err != nil {
		return fmt.Errorf("%w: packed entries do not decode: %w", ErrCorrupt, err)
	}
	for len(raw) > 0 {
		if len(raw) < 4 || uint64(len(raw)-4) < uint64(binary.LittleEndian.Uint32(raw)) {
			return fmt.Errorf("%w: packed entries end in the middle of one", ErrCorrupt)
		}
		size := binary.LittleEndian.Uint32(raw)
		if err := f(raw[4 : 4+size]); err != nil {
			return err
		}
		raw = raw[4+size:]
	}
	return nil
}
