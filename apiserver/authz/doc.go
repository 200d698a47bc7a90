// Package authz decides whether a user may do what a request asks for.
//
// It asks in Kubernetes' order: members of system:masters may do everything; a
// device (user system:node:<name> in group system:nodes) may do what the Node
// authorizer grants, above all read the Secrets, ConfigMaps and tokens of Pods
// that run on it and of no others; everybody else what RBAC's roles and
// bindings grant. It is also the guard against gaining rights by writing roles
// (verbs escalate and bind), and knows the roles a new cluster begins with.
//
// It is not authentication (apiserver/authn), and not admission: what depends
// on the body of a request, such as a device writing another device's Node, is
// refused by apiserver/admission.
//
// Types: Authorizer answers authorizer.Authorizer and RuleResolver; Source is
// what it reads, taken from the registry's cache by FromRegistry.
// BootstrapObjects are upstream's roles and bindings.
//
// Promises: decisions come from this device's replica alone, without a read
// from the store; a write is visible to the decisions of the same device as
// soon as it is acknowledged.
//
// Dangers: rules of a role that does not exist (yet) grant nothing, silently.
//
// It owns no goroutine. It may be imported by apiserver, apiserver/admission
// and cmd/edged.
//
// Sources: k8s.io/kubernetes/plugin/pkg/auth/authorizer/{rbac,node},
// k8s.io/kubernetes/pkg/registry/rbac (escalation), KEP-279.
package authz
