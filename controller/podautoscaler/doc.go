// Package podautoscaler acts on HorizontalPodAutoscalers: it scales Deployments,
// StatefulSets and whatever else has a scale to what their Pods use.
//
// It measures nothing: metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io
// are asked, whoever serves them (the API server itself serves the first, if no
// metrics-server does).
//
// Types: World is what is known of one autoscaler, Reconcile decides, History is what it
// remembers of it between rounds. Metrics is where figures come from.
//
// Promises: figures are asked for every 15 seconds while there is an autoscaler, in one
// round for all, and never otherwise. Upstream writes what was measured into the status
// each time, which would be a write in every round for ever: here it is written when it
// has moved by more than a tenth of its target, at most once a minute, and with whatever
// else changes. Events tell of changes only.
//
// Dangers: what is remembered is gone with the leader, as upstream's with the process.
// A new one scales nothing down in its first five minutes below what it found.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/podautoscaler, for the algorithm, reasons and
// words; KEP-853 and KEP-4951 for behavior.
package podautoscaler
