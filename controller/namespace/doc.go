// Package namespace empties namespaces that are being deleted and lets go of
// them.
//
// It does not wait for the garbage collector: it deletes what is in the
// namespace, Pods first (KEP-5080), everything else once no Pod is left.
//
// What the servers of aggregated APIs hold in it goes after the Pods, too. A server
// that does not answer keeps the namespace, as in upstream.
//
// Types: Order says which kinds are emptied when; Conditions tells what is
// left.
//
// Promises: a namespace that is empty is let go without a write in between; the
// conditions are written only while something remains. It is looked at again
// when a Pod of it goes, and while anything remains after 0.2 s, doubling to
// 30 s.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/namespace/deletion.
package namespace
