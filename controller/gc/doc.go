// Package gc is the garbage collector: objects whose owners are gone go, in the
// background, before their owner (foreground) or not at all (orphan).
//
// It keeps no graph. Upstream's has to build one because its view of the
// cluster is pieced together from informers; here the cache has an index by
// owner and shows one revision of everything, so that an owner that is not
// there does not exist.
//
// Of what the servers of aggregated APIs hold it keeps those objects' metadata that
// name owners or are being deleted, by following their servers (controller/foreign).
// An owner of theirs is asked for.
//
// Types: Judge decides on one object from what became of its owners; Ready
// decides whether an owner that waits for its dependents may go.
//
// Promises: an object is deleted only with its UID, and only if each of its
// owners was seen to be absent or waits for it. An owner in another namespace
// counts as absent for a namespaced object, and keeps an object without
// namespace for ever (with an Event), as upstream. An owner of a kind that is
// not served keeps its dependents.
//
// Goroutines: those of the loop.Queue and of foreign.Client.Monitor. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/garbagecollector; KEP-2336.
package gc
