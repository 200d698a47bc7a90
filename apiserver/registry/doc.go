// Package registry is the Kubernetes API without HTTP: the table of kinds and
// the one implementation of create, get, list, watch, update, patch, delete
// and deletecollection that serves every kind, whether the caller is an HTTP
// handler or a controller in this process.
//
// It is not a kind (package kinds holds what is particular to each), not HTTP
// (package apiserver), and keeps no state of its own: objects are in
// apiserver/objcache, truth is in the store.
//
// A Registry serves the Kinds it was given. Objects that go in may be of any
// version that the scheme knows; objects that come out are of the kind's
// storage version (k8s.io/api). Client[T] is the typed view for this process:
// For[*corev1.Pod](r). A Tx lets a kind change other objects in the same store
// transaction (a Service and the addresses it holds).
//
// Promises: a write is one compare-and-swap transaction; after it returned,
// this device's reads show it. Reads without a resourceVersion are
// linearizable; Client's reads are this device's cache. An update that changes
// nothing writes nothing. Errors are StatusErrors with upstream's wording.
//
// Dangers: objects that reads and watches return are shared and must not be
// changed; those that writes return belong to the caller. mutate functions run
// again after a lost race. Subscribe's function must not block or write.
//
// Goroutines: the cache's, owned by Run; one per Watch, which ends with its
// context. May be imported by: apiserver/..., controller/..., scheduler,
// runtime/..., net/..., cluster/..., cmd/edged.
//
// Sources: k8s.io/apiserver/pkg/registry/generic/registry/store.go and
// pkg/storage/etcd3/store.go, whose order of checks and messages are kept.
package registry
