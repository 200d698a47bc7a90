// Package sim runs a cluster of 3 to 7 members in one goroutine on virtual
// time, network and disks, driven by a seed: the same seed gives the same run,
// event by event.
//
// It is not the product's loop: it feeds raftstore/consensus as node.go does,
// on logs in memory (vfs.Mem) that lose what was not synced; bbolt's files are
// real ones in a folder of the caller's, which hold what the last Commit wrote.
//
// Types: [Run] plays a seed and returns a [Result]: what clients asked and were
// answered, for a checker of linearizability, and a digest of every event.
// What it can judge itself it does: all members come to the same state once
// faults end, acknowledged writes are in the history at their revision, and
// watchers see that history ordered, once, whole, in whole revisions, and go on
// at another member where they stopped.
//
// Faults: partitions (also one way), loss, delay, duplication and reordering of
// messages, crashes between events and at any operation on the disk, with torn
// writes, pauses, clocks that stand still or jump, slow disks, members added,
// promoted and removed, leaders moved, history compacted; the log is kept so
// short that members need the state.
//
// Dangers: raft draws election timeouts from crypto/rand.Reader; Run replaces
// that variable while it runs, so nothing else may use it meanwhile.
// Goroutines: none.
//
// May be imported by tests only.
package sim
