// Package disruption says how many Pods of each PodDisruptionBudget may go.
//
// It evicts nothing: the eviction subresource (apiserver/kinds) takes from what
// is allowed here, and preemption and drains go through it.
//
// Types: Reconcile is the decision: a World in, a status out.
//
// Promises: Reconcile is a function of its arguments. It owns a budget's status
// but for the evictions that the subresource notes there; what it cannot count
// allows nothing. A mark of disruption on a Pod that then was not deleted is
// taken back after two minutes. At rest it writes nothing.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/disruption for behavior and words.
package disruption
