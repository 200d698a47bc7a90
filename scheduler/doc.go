// Package scheduler gives Pods their nodes.
//
// It starts nothing (the agent of the named device does) and runs only while
// this device leads.
//
// Vocabulary: a Pod that has no node waits in the queue, which is active (to be
// tried now), in backoff (to be tried later) or unschedulable (to be tried when
// something changes that may help). A Snapshot is an immutable view of the
// nodes and what is on them. A filter says why a Pod cannot be on a node, a
// score how good it would be there. A Pod that fits nowhere may preempt Pods of
// lower priority: it is nominated to a node and waits until they are gone.
//
//	add ──▶ active ──▶ schedule ──▶ assume ──▶ bind (compare and swap)
//	          ▲            │                     │ refused
//	       backoff ◀── unschedulable ◀───────────┘
//	          (an event that may help moves a Pod from unschedulable)
//
// Between assume and bind a Pod may wait, unschedulable but with its room, for claims
// whose volumes are chosen with its node: the scheduler writes the choice, others make
// and bind the volumes, and the Pod is decided on again once its claims are bound.
//
// Types: Run is the scheduler. schedule(snapshot, pod) decides and is pure, and
// so is preempt: ties are broken by a hash of the Pod's UID and the node's name.
//
// Promises: no Pod is bound to a node that the snapshot plus everything bound
// since does not have room for; a binding is refused by the registry if the Pod
// has a node already. What did not change is not written again, nor told in an
// Event. Nothing is polled: a Pod that fits nowhere costs nothing until an
// event that concerns its reason.
//
// Bounds: a record of about 1 KB per Pod that is bound and not ended, and per
// Pod that waits; at most maxBinding bindings are under way.
//
// Goroutines: one that decides, one that writes Events, one per binding under
// way; Run waits for all. May be imported by: cmd/edged.
//
// Sources: k8s.io/kubernetes/pkg/scheduler for rules and words; Nomad's
// scheduler for the shape: decide on a snapshot, be refused at commit.
package scheduler
