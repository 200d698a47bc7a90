// Package nodestats measures what the device, its Pods and their containers use, as
// the kubelet's summary API tells it: control groups, /proc and file systems, read
// when somebody asks and never otherwise. Report is the part of it that devices tell each
// other (internal/usage).
//
// Disk use is found by walking what was written; one walk goes on at a time, and who
// asks while it does gets the same figures. What a processor does now (usageNanoCores)
// is the use between this question and an earlier one; without an earlier one that is
// recent it is measured for a quarter of a second.
//
// It owns no goroutine. May be imported by cmd/edged. Source of fields and meanings:
// k8s.io/kubernetes/pkg/kubelet/server/stats and pkg/kubelet/stats.
package nodestats
