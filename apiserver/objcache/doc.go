// Package objcache is the device's one decoded copy of the cluster's objects.
//
// It is not the API (package registry) and writes nothing: it follows the
// store by one Range at start and one Watch from then on.
//
// A Cache has a Set per kind: objects sorted by key, indexes, subscribers in
// this process (Subscribe) and a Feed for watches that go over the wire. A
// Feed keeps the events its followers have not read yet in a ring of fixed
// size; a follower that falls behind the ring is told so (ErrBehind) and reads
// what it missed from the store's history (Set.Replay), so that a slow client
// costs no memory.
//
// Promises: objects of one store revision appear together; List returns a
// snapshot and the revision it belongs to; subscribers and followers see every
// change of a kind once, in revision order; WaitFor(rev) returns only after
// subscribers were called for all changes up to rev.
//
// Dangers: objects are shared by everyone and must never be changed. With
// Config.Verify (tests) a changed object panics when it is replaced and when
// the cache ends. A subscriber runs on the cache's goroutine: it must not
// block, and must not write to the store.
//
// Goroutines: Run is the only one; it ends with its context. May be imported
// by: apiserver/registry.
//
// Sources: k8s.io/apiserver/pkg/storage/cacher for what a watch cache must
// promise.
package objcache
