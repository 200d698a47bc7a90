// Package disk writes, reads and grows partition tables: MBR with up to four
// primary partitions, and GPT.
//
// Promise: the same table gives the same bytes. [Grow] changes the end of the
// last partition. On MBR that is one write of one sector; on GPT the copy at the
// disk's end is written and synced first, so that with "gpt" on the kernel's
// command line a power cut at any write leaves one table that is whole.
//
// Dangers: nothing here tells a kernel about a change.
//
// May be imported by buildroot/... and cmd/edged. Starts no goroutines.
//
// Sources: UEFI specification 2.10, chapter 5; block/partitions/efi.c.
package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// SectorBytes is the unit of tables.
const SectorBytes = 512

// Align is what partitions begin at a multiple of, in sectors: 1 MiB.
const Align = 2048

// GUID is a globally unique identifier, in the byte order of its text.
type GUID [16]byte

func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// Partition types.
var (
	TypeESP   = GUID{0xC1, 0x2A, 0x73, 0x28, 0xF8, 0x1F, 0x11, 0xD2, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B}
	TypeLinux = GUID{0x0F, 0xC6, 0x3D, 0xAF, 0x84, 0x83, 0x47, 0x72, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4}
)

// Types of MBR.
const (
	MBRFAT32 = 0x0C
	MBRLinux = 0x83
)

// Partition is a part of a disk, in sectors.
type Partition struct {
	Start, Sectors int64
	MBRType        byte // on MBR
	Type, ID       GUID // on GPT
	Name           string
}

// Table is a disk's partitions in their order. With a zero GUID it is MBR.
type Table struct {
	DiskID     uint32 // MBR's, what PARTUUID begins with
	GUID       GUID
	Partitions []Partition
}

// ErrNoTable means that neither kind of table was found.
var ErrNoTable = errors.New("no partition table")

var le = binary.LittleEndian

// PARTUUID is how the kernel's command line names partition i (from 0).
func (t Table) PARTUUID(i int) string {
	if t.GUID == (GUID{}) {
		return fmt.Sprintf("%08x-%02x", t.DiskID, i+1)
	}
	return t.Partitions[i].ID.String()
}

const (
	gptEntries    = 128
	gptEntryBytes = 128
	gptArray      = gptEntries * gptEntryBytes / SectorBytes
	gptHead       = 92
)

// Write puts the table on a disk of size bytes.
func (t Table) Write(w io.WriterAt, size int64) error {
	last := int64(0)
	for i, p := range t.Partitions {
		if p.Start < last || p.Start < Align || p.Sectors <= 0 {
			return fmt.Errorf("partition %d: %d sectors from %d on overlap what is before", i+1, p.Sectors, p.Start)
		}
		last = p.Start + p.Sectors
	}
	end := size / SectorBytes
	if t.GUID == (GUID{}) {
		if last > end || len(t.Partitions) > 4 {
			return fmt.Errorf("%d partitions up to sector %d do not fit on an MBR disk of %d", len(t.Partitions), last, end)
		}
		_, err := w.WriteAt(t.mbr(), 0)
		return err
	}
	if last > end-gptArray-1 || len(t.Partitions) > gptEntries {
		return fmt.Errorf("%d partitions up to sector %d do not fit on a GPT disk of %d", len(t.Partitions), last, end)
	}
	return t.writeGPT(w, end, func() error { return nil })
}

func (t Table) mbr() []byte {
	b := make([]byte, SectorBytes)
	le.PutUint32(b[440:], t.DiskID)
	for i, p := range t.Partitions {
		mbrEntry(b[446+16*i:], p.MBRType, p.Start, p.Sectors)
	}
	b[510], b[511] = 0x55, 0xAA
	return b
}

func mbrEntry(e []byte, kind byte, start, sectors int64) {
	copy(e, []byte{0, 0xFE, 0xFF, 0xFF, kind, 0xFE, 0xFF, 0xFF})
	le.PutUint32(e[8:], uint32(start))
	le.PutUint32(e[12:], uint32(min(sectors, 1<<32-1)))
}

// writeGPT writes the copy at the end first, then the head.
func (t Table) writeGPT(w io.WriterAt, end int64, sync func() error) error {
	array := make([]byte, gptArray*SectorBytes)
	for i, p := range t.Partitions {
		e := array[i*gptEntryBytes:]
		putGUID(e, p.Type)
		putGUID(e[16:], p.ID)
		le.PutUint64(e[32:], uint64(p.Start))
		le.PutUint64(e[40:], uint64(p.Start+p.Sectors-1))
		for j, u := range utf16.Encode([]rune(p.Name)) {
			if j < 36 {
				le.PutUint16(e[56+2*j:], u)
			}
		}
	}
	head := func(self, other, arrayAt int64) []byte {
		b := make([]byte, SectorBytes)
		copy(b, "EFI PART\x00\x00\x01\x00")
		le.PutUint32(b[12:], gptHead)
		le.PutUint64(b[24:], uint64(self))
		le.PutUint64(b[32:], uint64(other))
		le.PutUint64(b[40:], 2+gptArray)
		le.PutUint64(b[48:], uint64(end-gptArray-2))
		putGUID(b[56:], t.GUID)
		le.PutUint64(b[72:], uint64(arrayAt))
		le.PutUint32(b[80:], gptEntries)
		le.PutUint32(b[84:], gptEntryBytes)
		le.PutUint32(b[88:], crc32.ChecksumIEEE(array))
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHead]))
		return b
	}
	tail := append(bytes.Clone(array), head(end-1, 1, end-1-gptArray)...)
	if _, err := w.WriteAt(tail, (end-1-gptArray)*SectorBytes); err != nil {
		return err
	}
	if err := sync(); err != nil {
		return err
	}
	protective := make([]byte, SectorBytes)
	mbrEntry(protective[446:], 0xEE, 1, end-1)
	protective[510], protective[511] = 0x55, 0xAA
	first := append(append(protective, head(1, end-1, 2)...), array...)
	if _, err := w.WriteAt(first, 0); err != nil {
		return err
	}
	return sync()
}

// putGUID writes the mixed byte order of UEFI.
func putGUID(b []byte, g GUID) {
	for i, j := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		b[i] = g[j]
	}
}

func getGUID(b []byte) (g GUID) {
	for i, j := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		g[j] = b[i]
	}
	return g
}

// Read reads the table of a disk of size bytes. Of GPT's two copies it takes
// the first that is whole.
func Read(r io.ReaderAt, size int64) (Table, error) {
	b := make([]byte, SectorBytes)
	if _, err := r.ReadAt(b, 0); err != nil {
		return Table{}, fmt.Errorf("read the partition table: %w", err)
	}
	if b[510] != 0x55 || b[511] != 0xAA {
		return Table{}, ErrNoTable
	}
	if b[446+4] == 0xEE {
		t, err := readGPT(r, 1, size)
		if err != nil {
			t, err = readGPT(r, size/SectorBytes-1, size)
		}
		return t, err
	}
	t := Table{DiskID: le.Uint32(b[440:])}
	for i := range 4 {
		e := b[446+16*i:]
		if e[4] == 0 {
			break
		}
		p := Partition{MBRType: e[4], Start: int64(le.Uint32(e[8:])), Sectors: int64(le.Uint32(e[12:]))}
		if p.Start == 0 || (p.Start+p.Sectors)*SectorBytes > size {
			return t, fmt.Errorf("%w: partition %d ends behind the disk", ErrNoTable, i+1)
		}
		t.Partitions = append(t.Partitions, p)
	}
	return t, nil
}

func readGPT(r io.ReaderAt, at, size int64) (Table, error) {
	b := make([]byte, SectorBytes)
	if _, err := r.ReadAt(b, at*SectorBytes); err != nil {
		return Table{}, fmt.Errorf("read the GPT at sector %d: %w", at, err)
	}
	sum := le.Uint32(b[16:])
	le.PutUint32(b[16:], 0)
	arrayAt := int64(le.Uint64(b[72:]))
	if string(b[:8]) != "EFI PART" || le.Uint32(b[12:]) != gptHead || crc32.ChecksumIEEE(b[:gptHead]) != sum ||
		le.Uint32(b[80:]) != gptEntries || le.Uint32(b[84:]) != gptEntryBytes || arrayAt < 2 || arrayAt > size/SectorBytes {
		return Table{}, fmt.Errorf("%w: the GPT at sector %d is damaged", ErrNoTable, at)
	}
	array := make([]byte, gptArray*SectorBytes)
	if _, err := r.ReadAt(array, arrayAt*SectorBytes); err != nil {
		return Table{}, err
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(b[88:]) {
		return Table{}, fmt.Errorf("%w: the GPT at sector %d is damaged", ErrNoTable, at)
	}
	t := Table{GUID: getGUID(b[56:])}
	for e := array; len(e) > 0 && getGUID(e) != (GUID{}); e = e[gptEntryBytes:] {
		p := Partition{Type: getGUID(e), ID: getGUID(e[16:]), Start: int64(le.Uint64(e[32:]))}
		p.Sectors = int64(le.Uint64(e[40:])) + 1 - p.Start
		if p.Start <= 0 || p.Sectors <= 0 || p.Start+p.Sectors > size/SectorBytes {
			return Table{}, fmt.Errorf("%w: partition %d ends behind the disk", ErrNoTable, len(t.Partitions)+1)
		}
		units := make([]uint16, 0, 36)
		for j := range 36 {
			if u := le.Uint16(e[56+2*j:]); u != 0 {
				units = append(units, u)
			}
		}
		p.Name = string(utf16.Decode(units))
		t.Partitions = append(t.Partitions, p)
	}
	return t, nil
}

// Device is a disk, or a file that stands for one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Grow lets the last partition of a disk of size bytes end where the disk does,
// if it ends more than an alignment before. It returns the table as it is now.
func Grow(d Device, size int64) (t Table, grown bool, err error) {
	if t, err = Read(d, size); err != nil {
		return t, false, err
	}
	if len(t.Partitions) == 0 {
		return t, false, ErrNoTable
	}
	end := size / SectorBytes
	if t.GUID != (GUID{}) {
		end -= gptArray + 1
	}
	end -= end % Align
	if t.GUID == (GUID{}) {
		end = min(end, 1<<32-1)
	}
	last := &t.Partitions[len(t.Partitions)-1]
	if last.Start+last.Sectors >= end {
		return t, false, nil
	}
	last.Sectors = end - last.Start
	if t.GUID != (GUID{}) {
		return t, true, t.writeGPT(d, size/SectorBytes, d.Sync)
	}
	// Only the entry changes: boot code that somebody put there stays.
	b := make([]byte, SectorBytes)
	if _, err := d.ReadAt(b, 0); err != nil {
		return t, false, err
	}
	le.PutUint32(b[446+16*(len(t.Partitions)-1)+12:], uint32(last.Sectors))
	if _, err := d.WriteAt(b, 0); err != nil {
		return t, false, err
	}
	return t, true, d.Sync()
}
