// Package kinds is the table of kinds that edged serves: for each its names,
// versions, strategy, subresources, selectable fields and what else its writes
// change.
//
// It is not the implementation of the verbs (package registry).
//
// All returns the table. Where upstream's strategy package can be imported
// alone, the row uses it as it is; where it would bring the generic API
// server's storage and with it client-go's informers, the strategy is ours and
// says in its own file which of upstream's it follows. Defaulting and
// validation are upstream's everywhere.
//
// Promises: every row passes the suite in suite_test.go; a kind whose meaning
// needs a controller is served only when edged has that controller.
//
// Dangers: strategies see internal versions, everything else in a row sees the
// storage version.
//
// It owns no goroutine. May be imported by: cmd/edged, registrytest, tests.
//
// Sources: k8s.io/kubernetes/pkg/registry, strategy.go and storage/storage.go
// of each kind.
package kinds
