// Package daemonset runs one Pod of each DaemonSet on every Node that it is for.
//
// It places nothing itself: each Pod names its Node in an affinity, and the
// scheduler binds it there. Its Pods bear a device's loss: they stay on a Node
// that is not heard of.
//
// Types: Reconcile is the decision: a World in, a Plan out; Status is the status
// that follows. Ended Pods are replaced at a pace that the controller remembers
// by Node (backoff), as upstream's does: it starts anew with a new leader.
//
// Promises: Reconcile and Status are functions of their arguments. It owns all
// of a DaemonSet's status. At rest it writes nothing.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/daemon for behavior and words;
// KEP-1591 for surge.
package daemonset
