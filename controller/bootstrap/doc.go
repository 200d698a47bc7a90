// Package bootstrap makes what every cluster has: four namespaces, the system
// priority classes, the default StorageClass, RBAC's roles and bindings, and the Service
// default/kubernetes with the addresses of the API.
//
// It is not configuration: what a user may change stays as he left it, except
// that roles which ask for it get missing rules back at start, as upstream.
//
// Types: Reconcile merges what should be with what is; Config names the
// objects and addresses.
//
// Promises: at rest nothing is written; a namespace or the Service that is
// deleted comes back.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controlplane (kubernetesservice, reconcilers,
// controller/systemnamespaces), pkg/registry/{rbac,scheduling}/rest.
package bootstrap
