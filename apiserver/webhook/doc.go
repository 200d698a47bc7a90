// Package webhook asks others about writes: admission webhooks and admission
// policies of the group admissionregistration.k8s.io, and the conversion
// webhooks of CustomResourceDefinitions.
//
// It is not the chain of plugins that every write passes (apiserver/admission,
// which runs this package's Admission), nor the kinds that configure it
// (apiserver/kinds).
//
// An Admission finds the configurations that match a write in this device's
// cache and asks each: a webhook by an AdmissionReview over TLS to an endpoint of
// its Service, wherever in the cluster that is, or to its URL; a policy by
// evaluating its expressions with upstream's CEL libraries. What mutates runs
// first, once more if something after it changed the object and it wants that.
// A Converter does the same for conversions.
//
// Promises: a write that nothing matches costs a look at the configurations; a
// webhook is asked for no longer than its timeout; failurePolicy, sideEffects,
// matchPolicy, selectors and matchConditions are honoured with upstream's words.
// Expressions are compiled when they are first needed and forgotten some minutes
// after the last use.
//
// Dangers: a webhook that fails closed and matches what it needs to start can
// lock a cluster; configurations of this group are therefore never asked about.
//
// Goroutines: those of connections and of webhooks that are asked side by side,
// which end with the request; a timer. May be imported by: cmd/edged.
//
// Sources: k8s.io/apiserver/pkg/admission/plugin/{webhook,policy,cel},
// k8s.io/apiextensions-apiserver/pkg/apiserver/conversion.
package webhook
