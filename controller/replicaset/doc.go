// Package replicaset keeps the number of Pods that a ReplicaSet asks for.
//
// It is not the Deployment controller (controller/deployment), which decides
// how many that are. ReplicationControllers are the same thing with another
// type: controller/replicationcontroller calls Serve with its own Shape.
//
// Types: Reconcile is the decision, a Plan what is to be made and deleted;
// Status is the status that follows. Shape is how a kind looks as a
// ReplicaSet.
//
// Promises: Reconcile and Status are functions of their arguments; a
// ReplicaSet that has what it asks for writes nothing. There are no
// expectations as upstream has them: after a write this device's cache shows
// it, so the next round counts right.
//
// Goroutines: those of the loop.Queue. May be imported by: controller,
// controller/replicationcontroller.
//
// Sources: k8s.io/kubernetes/pkg/controller/replicaset for behavior and words.
package replicaset
