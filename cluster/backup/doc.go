// Package backup keeps snapshots of the cluster's state in a folder, taken on a
// schedule: of this device or of another one.
//
// It is not the snapshot (raftstore makes the bytes, and their SHA-256 behind
// them as etcdctl does) and not the decision who takes them (the leader runs a
// [Schedule]; cmd/edged sees to that).
//
// Types: a [Schedule] takes a snapshot when the newest in its [Place] is older
// than the interval and the revision has moved since, and removes those beyond
// the number to keep. A place is a [Folder] here, or a [Remote] one, which
// speaks to a [Server] on the other device. An [Entry] is a snapshot in a place:
// its name says revision and time.
//
// Promises: what has a snapshot's name was read back after it was written and
// has the hash that it was sent with; it got the name by rename, synced. Nothing
// is written while nothing changed. Removed is only what has the name of a
// snapshot, and nothing before the new one is there. A server writes below its
// data-dir and below the folders that its device was told, nowhere else, and
// follows no link out of them.
//
// Dangers: a snapshot holds the cluster's Secrets; files are 0600 in folders
// 0700. Names carry the device's time, and the order of what to keep is theirs: a
// restored state begins with older revisions. Where the clock was wrong an older
// one may be kept for a newer, but the one just taken always is.
//
// Goroutines: Schedule.Run is one of the caller's; a Remote's Put has one that
// ends with it. May be imported by: cmd/edged.
package backup
