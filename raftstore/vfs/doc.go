// Package vfs is what the store's log and its snapshots need of a file system,
// small enough to have a twin in memory that forgets what was not synced.
//
// It is not where bbolt's file lives: bbolt maps its file, which no twin can
// stand in for.
//
// [FS] and [File] are the needs. Every operation that changes the disk carries
// a label which says what it is for ("wal.append"), so that a test can fail or
// cut the power at exactly that one. [OS] is the machine's file system. [Mem]
// is the twin: its Crash returns what a disk may hold after a power cut, in
// which each sector of each unsynced write is there or not, and names that were
// not synced are lost from some point on.
//
// Concurrency: OS may be used by any goroutine, Mem by one at a time.
// Goroutines: none.
//
// May be imported by raftstore/...
package vfs
