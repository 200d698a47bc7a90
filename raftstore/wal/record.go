package wal

import (
	"encoding/binary"
	"hash/crc32"
)

type parsed struct {
	kind    byte
	durable int64
	payload []byte
	crc     uint32
	next    int64
}

// form is how the records of a segment are written.
type form struct {
	version  byte
	recycled bool
	salt     []byte // goes into each crc
}

// formOf is what a segment's head says of it; whether that is true, its crc
// tells.
func formOf(data []byte, seq uint64) form {
	f := form{version: version}
	if len(data) > headerBytes {
		f.version = data[headerBytes]
	}
	if f.version > 1 {
		f.salt = binary.LittleEndian.AppendUint64(nil, seq)
		at := headerBytes + headBytes - 1
		f.recycled = len(data) > at && data[at]&flagRecycled != 0
	}
	return f
}

// headBytes is the payload of a head, in version 1 without flags.
const headBytes = 22

func (f form) headBytes() int64 {
	if f.version == 1 {
		return headBytes - 1
	}
	return headBytes
}

// parse reads the record at at, which must chain to crc. The head of the first
// segment carries the crc that the chain starts from.
func (f form) parse(data []byte, at int64, crc uint32, start bool) (r parsed, ok bool) {
	if at+headerBytes > int64(len(data)) {
		return r, false
	}
	n := int64(binary.LittleEndian.Uint32(data[at:]))
	next := (at + headerBytes + n + 7) &^ 7
	if n == 0 || n > maxRecordBytes || next > int64(len(data)) {
		return r, false
	}
	body := data[at+8 : at+headerBytes+n]
	r = parsed{kind: body[8], durable: int64(binary.LittleEndian.Uint64(body)), payload: body[9:], next: next}
	if r.kind == kindHead && n != f.headBytes() {
		return r, false
	}
	if start {
		if r.kind != kindHead {
			return r, false
		}
		crc = binary.LittleEndian.Uint32(r.payload[17:])
	}
	r.crc = crc32.Update(crc32.Update(crc, castagnoli, f.salt), castagnoli, body)
	return r, r.crc == binary.LittleEndian.Uint32(data[at+4:])
}

// durableMark reads the durable field of what may be a record at at. Its crc
// cannot be checked, since the one before it is gone; a record whose content
// hashes to its crc from the crc in the 4 bytes of any earlier record is not
// there by chance.
func (f form) durableMark(data []byte, at int64) (int64, bool) {
	n := int64(binary.LittleEndian.Uint32(data[at:]))
	if n == 0 || at+headerBytes+n > int64(len(data)) || data[at+16] < kindHead || data[at+16] > kindLast {
		return 0, false
	}
	next := (at + headerBytes + n + 7) &^ 7
	// The record after it must chain to it.
	crc := binary.LittleEndian.Uint32(data[at+4:])
	if r, ok := f.parse(data, next, crc, false); ok {
		return r.durable, true
	}
	return 0, false
}
