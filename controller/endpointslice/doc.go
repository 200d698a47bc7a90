// Package endpointslice keeps the EndpointSlices of Services that select Pods.
//
// It is not the proxy (net/proxy reads slices) and not the older Endpoints
// (controller/endpoints).
//
// Types: Reconcile compares a Service and its Pods with its slices; Pack, which
// controller/endpointslicemirroring uses as well, places endpoints in slices of
// bounded size (here 100) so that few slices change. Change is what is to be written.
//
// Promises: Reconcile is a function of its arguments; an endpoint stays in its
// slice as long as it can; at rest nothing is written. Changes of Pods are
// gathered for 50 ms, so that a rollout does not cost a write per Pod.
// The annotation with the time of the change, which only measures upstream, is
// left out: it would be the larger part of many writes.
//
// Goroutines: those of the loop.Queue. May be imported by: controller,
// controller/endpoints, controller/endpointslicemirroring.
//
// Sources: k8s.io/endpointslice; KEP-752, KEP-2086, KEP-4444, KEP-3015.
package endpointslice
