// Package node says of each Node whether its device is heard of, keeps the
// taints that follow from its conditions, and takes Pods off Nodes that they do
// not tolerate.
//
// It is not the device's own report (runtime/nodestatus), which it overrides only
// while the device is silent, and it hears nothing itself: Liveness tells when a
// device was last heard of, from Raft's own traffic. No Lease is written for it.
//
// Types: Liveness is asked when a device could have become silent, while there is
// more than one. When this device itself stood still, the others get their time anew.
// Health, Taints and Eviction are the decisions, functions of their arguments.
//
// Promises: a device that is silent for Grace is NotReady (Ready is Unknown) and
// its Pods are not ready; Pods go when the time that they tolerate is over,
// counted from the taint, so that a new leader does not begin anew. When half of
// the devices or more are silent nothing is evicted: then it is rather the
// network. A device that is heard again loses nothing before it has said how it is.
// Pods without a controller wait for a device that restarts on an order
// (AnnotationBackBy). At rest nothing is written.
//
// Goroutines: those of the loop.Queue, one that asks Liveness, and up to 8 that write
// Pods while a Node is looked at. May be imported
// by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/nodelifecycle and
// pkg/controller/tainteviction for conditions, taints and words.
package node
