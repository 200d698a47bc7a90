// Package auth is who may do what in the store: etcd's users, roles and
// permissions on key ranges, and the tokens that prove a user.
//
// [State] is replicated: it changes only by applying entries of the log, with
// the same outcome on every member, and never reads a clock. [Tokens] is not:
// what a token is worth is decided on the member that is asked.
//
// Promises: a caller whose permissions are older than the last change is
// refused and asks again ([ErrOldRevision]); a range is permitted only if the
// permissions of the user's roles together cover all of it.
//
// Dangers: a State is guarded by its owner's lock (mvcc), a Tokens by its own.
// Passwords arrive hashed; nothing here writes one anywhere.
//
// Goroutines: none. May be imported by raftstore and raftstore/mvcc. Source of
// the semantics: etcd's authentication guide and server/auth.
package auth
