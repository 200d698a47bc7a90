// Package quota measures what objects use of a ResourceQuota, and says whether a
// quota has room for one more.
//
// It is neither the admission plugin (apiserver/admission), which asks before a
// write, nor the controller (controller/resourcequota), which counts what is
// there: both count by this package, so that they agree.
//
// Types: none of its own; Usage, Covers, Check and Total are functions of their
// arguments.
//
// Promises: names, rules and words are upstream's. It reads no clock.
//
// It owns no goroutine. May be imported by: apiserver/admission,
// controller/resourcequota.
//
// Sources: k8s.io/kubernetes/pkg/quota/v1/evaluator/core and
// k8s.io/apiserver/pkg/admission/plugin/resourcequota; what they link (informers)
// is why it is ours.
package quota
