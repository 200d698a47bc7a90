// Package statefulset keeps the Pods of StatefulSets: each has an identity (a
// name with a number, a host name, claims of its own) that outlives it.
//
// It binds no volume and runs no Pod.
//
// Types: Reconcile is the decision: a World in, a Plan out; Status is the status
// that follows.
//
// Promises: there are never two Pods of one identity. A Pod is deleted, never
// removed: one on a device that is lost keeps its name until the device says
// that it has ended or somebody declares the device out of service. Reconcile
// and Status are functions of their arguments. It owns all of a StatefulSet's
// status. At rest it writes nothing.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/statefulset for behavior and words;
// KEP-961 for maxUnavailable, KEP-1847 for the retention of claims, KEP-3335 for
// start ordinals.
package statefulset
