// Package deployment rolls Deployments out: a ReplicaSet per template, scaled
// up and down against each other.
//
// It makes no Pods (controller/replicaset does).
//
// Types: Reconcile is the decision: a Deployment and its ReplicaSets in, a Plan
// out. The pod-template-hash is upstream's, so that a cluster may be handed over
// with no rollout.
//
// Promises: Reconcile is a function of its arguments. One round takes one step
// of a rollout; the change of a ReplicaSet's status brings the next. At rest it
// writes nothing. The status is written only over the state it was made from.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/deployment for behavior and words;
// KEP-3973 for terminating replicas.
package deployment
