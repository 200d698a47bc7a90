// Package wal is the raft log on disk: entries, hard state and where the last
// snapshot was, appended in batches with one fdatasync each.
//
// It is not the applied state (raftstore/mvcc) and decides nothing about raft.
//
// # Format, version 2
//
// A log is a folder of segments named by a 16-digit hexadecimal sequence number
// and ".wal". A segment is preallocated and written once in full, so that
// appending changes no metadata and an fdatasync writes data alone; a spent
// segment is recycled under a new name, with what it holds: clearing it would
// write every byte of the log twice. Records follow each other at multiples of 8
// bytes:
//
//	length  uint32 LE  of the payload, at least 1
//	crc     uint32 LE  Castagnoli, of the previous record's crc, then the segment's sequence
//	                   number (uint64 LE), durable, kind, payload
//	durable uint64 LE  how far this segment was known to be on disk when the record was written
//	kind    byte       1 head, 2 entry, 3 hard state, 4 snapshot, 5 reset, 6 intent, 7 packed, 8 opened
//	payload            head: format version, sequence number, member id, first crc, flags (1: recycled);
//	                   entry and hard state raftpb; packed: entries of a large batch, compressed (pack.go);
//	                   opened: 8 random bytes, or zeros up to the end of a page; others index and term, uint64 LE
//	padding            zero bytes up to a multiple of 8
//
// The first record that does not chain to the one before it ends the segment. The
// crc chains over all segments; the sequence number in it tells what a recycled
// file held before from what is in it now, and an "opened" record, written with
// the first batch after a start, what a power cut left torn behind the end. The same
// kind fills a page that the next small batch would not fit in.
//
// Version 1 is read: its crcs lack the sequence number, its heads the flags, it
// packs nothing, and its files are cleared before they are used again.
//
// # Damage
//
// Power cuts tear what was not synced: the tail behind the last good record,
// in any order of its blocks. Such a tail is cut before anything is appended, and
// told in the log unless it looks like what a recycled file held before. Damage
// before the durable mark of any later record, or in a segment that is not the
// last, cannot come from a power cut: it is refused with [ErrCorrupt], since
// cutting there would undo what was acknowledged.
//
// Concurrency: a [Log] is used by one goroutine. Goroutines: none.
//
// May be imported by raftstore only.
package wal
