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
// Types: [DB] is the key space; [Watcher] reads its history from a revision on;
// [Snapshot] is a copy of the file while the store goes on.
//
// Layout of the file: etcd's own, so that a snapshot is a copy of it that etcd's
// tools read, and the other way round (layout.go). Bucket "key" maps a revision
// to a mvccpb.KeyValue, "lease" an id to its TTLs, "alarm", "cluster",
// "members", "members_removed", "auth", "authUsers" and "authRoles" are small
// and held in memory, "meta" says how far the log was applied. The key index is
// in memory and built from "key" at Open.
//
// Determinism: Apply depends on its arguments and on what was applied before,
// never on a clock or on chance. When a lease expires is for the leader to
// decide and to propose.
//
// Concurrency: Apply and Advance are called by one goroutine; everything else
// may be called by any, at any time. Reads hold a lock that
// Apply waits for only while the key index is consulted and values are copied
// out. Goroutines: none.
//
// May be imported by raftstore only. Source of the semantics: etcd's API
// documentation and server/storage/mvcc.
package mvcc
