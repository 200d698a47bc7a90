// Package pod runs one Pod on this device: from what is wanted and what is
// observed it decides what to do next, does it, and says how the Pod is.
//
// It is not the list of this device's Pods and writes nothing to the cluster
// (runtime/agent), and it knows containerd only by what runtime/engine offers.
//
// plan.go and status.go are pure: (wanted, observed, now) to actions, and to the
// Pod's status. spec.go, env.go and security.go turn the API's container into
// the engine's. [Worker] is the thin loop that performs.
//
// Where state lives. A container's record in the engine carries, as labels,
// which Pod, container and attempt it is, so that a daemon that was killed finds
// its containers again; the last finished attempt is kept for its exit code and
// its log. After a reboot the engine is empty, and attempts go on from the
// status that the cluster has. What is only in memory (back-off, probes'
// outcomes) begins anew, with containers that ran before taken to be started
// and as ready as the cluster last knew them.
//
// Promises: a container is stopped only because its Pod or its spec changed,
// its liveness probe failed, or the Pod ends; never because the control plane is
// away. The grace period may only shrink.
//
// Goroutines: one per Pod, plus one for each image pull, hook and probe under
// way; all ended before [Worker.Run] returns. May be imported by runtime/agent
// and runtime/nodeapi. Source of the semantics:
// k8s.io/kubernetes/pkg/kubelet/{kuberuntime,status}.
package pod
