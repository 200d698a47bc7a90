// Package peer carries messages between the members of a cluster over
// connections that the caller listens for and dials; who may connect, and TLS,
// is the caller's.
//
// It is not consensus: messages may be lost, and those of different urgency
// overtake each other, which raft allows.
//
// Types: [Transport] keeps one connection per other member for what it sends
// there; what that member sends arrives on a connection that it dialled.
// [Handler] takes what arrives. Beside messages of raft there are calls, which
// are answered, and snapshots, each on a connection of its own, so that a slow
// one stalls nothing and the receiver's pace is the sender's.
//
// # Format, version 1
//
// A connection is a sequence of frames in each direction:
//
//	length uint32 LE  of the payload
//	crc    uint32 LE  Castagnoli, of kind and payload
//	kind   byte
//	payload
//
// The dialler's first frame is hello: "edgp", version, purpose (1 stream,
// 2 snapshot, 3 call), cluster, from, to (uint64 LE each), the dialler's own
// URLs separated by newlines. The answer is welcome: a byte, 0 to go on, else
// why not. On a stream the listener sends nothing but an ack frame, at most one
// in 2 s ([Transport.SetAcks]) and only after something arrived: a dialler that waits 3 s for one
// dials again, where TCP would take minutes to notice. Its connection's goroutine
// sends it, so that a member whose disk hangs is still heard of.
//
// # Bounds
//
// A member's queue holds 512 urgent frames (heartbeats, votes, answers) and
// 8 MiB of others; what does not fit is dropped and told to raft, which sends it
// again. Frames are at most 64 MiB, snapshots' 64 KiB.
//
// Goroutines: one for accepting, one per incoming connection, two per
// connected member, one per call being answered (at most 64); all end with
// [Transport.Close].
//
// May be imported by raftstore only.
package peer
