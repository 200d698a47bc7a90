// Package job runs Pods until enough of them have succeeded.
//
// Types: Reconcile is the decision: a World in, a Plan out; Account is what
// follows for the status, and Settle what follows once finalizers are gone.
//
// Every Pod of a Job carries a finalizer until its end is counted: it is first
// named in status.uncountedTerminatedPods, then loses the finalizer, then is
// counted and its name dropped. So a Pod that is deleted at any instant counts
// once, also through a change of leader.
//
// The pace at which failing Pods are made again is remembered in this process
// only (backoff), as upstream's: a new leader makes the next one at once.
//
// Promises: Reconcile, Account and Settle are functions of their arguments. It
// owns all of a Job's status, unless spec.managedBy names somebody else. At rest
// it writes nothing. A finished Job with a TTL is deleted when that is over.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/job and ttlafterfinished for
// behavior and words; KEP-2307 for the tracking, KEP-3329 for failure policies,
// KEP-3850 for limits by index, KEP-3998 for success policies.
package job
