// Package authn tells who sent a request.
//
// It is the list of ways in which a caller proves an identity to the API
// server: a client certificate of the cluster's authority (CN is the user, O
// are the groups), a ServiceAccount token signed by one of the cluster's keys,
// or nothing at all (system:anonymous, which RBAC lets see little). It is also
// the issuer of those tokens, with their OpenID discovery documents.
//
// It is not authorization (apiserver/authz) and holds no keys on disk
// (cluster/identity hands them in as values).
//
// Types: Authenticator answers authenticator.Request for HTTP and
// authenticator.Token for TokenReview; Issuer makes tokens (TokenRequest) and
// renders the OpenID documents. Both read ServiceAccounts, Pods, Secrets and
// Nodes through the small interface Objects, which *registry.Registry has.
//
// Promises: a token is accepted only with a signature by a known key, a known
// issuer, a matching audience, a valid time, and while the objects it is bound
// to exist with the same UID. Lookups are served by the device's own replica
// first, so that tokens work on an island without quorum; only an object that
// is not in the replica is asked for again with a linearizable read.
//
// Dangers: results of signature checks are remembered (bounded maps, keyed by
// the SHA-256 of certificate or token), times and bound objects are checked
// anew for each request.
//
// It owns no goroutine. It may be imported by apiserver and cmd/edged.
//
// Sources: k8s.io/kubernetes/pkg/serviceaccount (claims, wording),
// k8s.io/apiserver/pkg/authentication/request, RFC 7519, OpenID Connect
// Discovery 1.0.
package authn
