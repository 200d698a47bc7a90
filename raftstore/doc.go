// Package raftstore is a replicated key-value store with etcd's semantics: the
// cluster's state, one copy on each device.
//
// It knows nothing of Kubernetes. Requests and responses are etcd's own
// messages (go.etcd.io/etcd/api/v3/etcdserverpb), so that a gRPC service over
// it is a thin shell; errors are sentinels of this package.
//
// [Store] is all that others see. A write travels: Store method, proposal to
// the goroutine that owns raft's RawNode (node.go), the log on disk (wal) with
// one sync for all proposals that were waiting, apply (mvcc), answer to the
// waiting method. What was answered is on disk. Where the member is alone and nothing
// else waits, the method does all of that itself (alone.go), and does not heed its context
// while the disk works.
//
// Reads come from memory and bbolt of this device. A linearizable one first
// asks the leader, in one round for all that wait, how far this device must be;
// for a lone member that costs nothing.
//
// The applied state is committed to bbolt lazily, by size and when the store is
// closed, never per write; after a crash it is rebuilt from the log.
//
// Any member takes any request: proposals, questions for the read index and for
// leases go to the leader (member.go, lease.go). A member that is too far behind
// for the log gets the state, streamed. A lone member has no clock: it wakes for
// requests only.
//
// Goroutines: the node's, the committer's, the lessor's (waiting for this
// member to lead), keepRoom's, forget's, settle's until the member has told its name, those of
// raftstore/peer, and one per snapshot being sent; all ended by [Store.Close].
// May be imported by apiserver/{codec,objcache,registry} and cmd/edged.
package raftstore
