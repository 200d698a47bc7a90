// Package codec turns objects into the bytes that the store keeps and back,
// and converts between an object's versions.
//
// It is not the HTTP negotiation (package apiserver) and decides nothing about
// what an object may contain (package kinds).
//
// Scheme holds upstream's types, conversions and defaults of the groups that
// edged serves. Encode writes the storage version as kube-apiserver does: the
// magic "k8s\0" and a runtime.Unknown around the protobuf message. Decode
// reads that, and JSON, and older versions, which it converts.
//
// Promises: what Encode wrote, a kube-apiserver on the same keys reads;
// Decode never keeps a reference to its input and never panics on it.
//
// Dangers: Scheme is upstream's legacyscheme.Scheme, a global that upstream's
// strategies use too. It is complete once this package is initialized and must
// not be added to while requests are served.
//
// It owns no goroutine. May be imported by: apiserver/... only.
//
// Sources: k8s.io/apimachinery/pkg/runtime/serializer/protobuf;
// k8s.io/kubernetes/pkg/controlplane/import_known_versions.go.
package codec
