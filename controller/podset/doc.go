// Package podset is what the controllers that own Pods have in common: which
// Pods are theirs, which are ready, which go first, how many are made at once.
//
// It decides and, in SlowStart and Claim.Apply, performs; it runs nothing of
// its own. Every decision takes the time as a value.
//
// Types: Claim is the outcome of comparing an owner's selector with the Pods
// (or ReplicaSets) around it: mine, to adopt, to release. Rank orders Pods for
// deletion.
//
// Dangers: Pods come from the cache and are shared; nothing here changes them.
//
// Goroutines: SlowStart and Each run calls side by side and wait for them. May
// be imported by: controller/....
//
// Sources: k8s.io/kubernetes/pkg/controller/controller_utils.go and
// controller_ref_manager.go for the behavior.
package podset
