// Package consensus is one member of a cluster as a step function: raft, its
// log on disk and the applied state, without goroutine, clock or network.
//
// It is not the loop that feeds it: raftstore's node does that with time and
// connections, raftstore/sim with virtual ones.
//
// Types: [Core] takes ticks, messages and proposals, and [Core.Process] carries
// out what raft wants: entries to the log, messages and outcomes to [Outside],
// committed entries to the state. [Membership] is who the members are, kept
// with the state, so that a snapshot carries it.
//
// Promises: a message that promises something leaves after what it promises is
// on disk; an outcome is told after its entry is. What Process does depends on
// what was fed in and on raft's draw of election timeouts alone.
//
// A received snapshot replaces the state in three steps, each durable: the
// log says that it is about to (intent), the file takes the state's name, the
// log forgets its entries (reset). A start after a cut finds out how far it
// came and finishes.
//
// Dangers: a Core is used by one goroutine; after an error other than
// wal.ErrNoSpace it must not be used any more. Goroutines: none.
//
// May be imported by raftstore and raftstore/sim.
// Sources: raft's doc.go; raft thesis 4 (membership), 6.4 (reads), 10.2.1.
package consensus
