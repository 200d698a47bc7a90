// Package mvcc is the state machine of the store: a multi-version key space
// with etcd's semantics, and leases, over bbolt.
//
// It is not durable by itself. The raft log is: [DB.Apply] changes memory only,
// [DB.Commit] writes what was applied since the last one in a single bbolt
// transaction, together with the log index that it reflects. After a crash the
// file holds the state of some earlier Commit, and applying the log from
// [DB.Applied] on gives the same state again. Flash therefore sees each entry
// about once, and an idle store writes nothing.
//
// Types: [DB] is the key space; [Watcher] reads its history from a revision on.
//
// Layout of the file: bucket "rev" maps a revision (main, sub: 8 bytes big
// endian each) to one byte, 0 put or 1 delete, and a mvccpb.KeyValue (for a
// delete only the key); "lease" maps an id to TTL and remaining TTL; "meta"
// holds "format" (one byte, 1), "applied" (index, term, revision, compacted
// revision) and "conf" (raftpb.ConfState). The key index is in memory and built
// from "rev" at Open.
//
// Determinism: Apply depends on its arguments and on what was applied before,
// never on a clock or on chance. When a lease expires is for the leader to
// decide and to propose.
//
// Concurrency: Apply, Commit and SetConfState are called by one goroutine;
// everything else may be called by any, at any time. Reads hold a lock that
// Apply waits for only while the key index is consulted and values are copied
// out. Goroutines: none.
//
// May be imported by raftstore only. Source of the semantics: etcd's API
// documentation and server/storage/mvcc.
package mvcc
