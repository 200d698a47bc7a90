// Package openapi serves the descriptions of the API that clients read:
// kubectl explain, kubectl apply and kubectl diff ask for them.
//
// It serves upstream's own documents (api/openapi-spec of k8s.io/kubernetes, with
// the values of fields, and without alpha features, as a kube-apiserver has them)
// for the group versions that it is told are served, without building anything
// at run time. It is not discovery, which package apiserver renders from the
// table of kinds.
//
// Types: Handler answers /openapi/v3, /openapi/v3/<group version> and
// /openapi/v2.
//
// Promises: nothing is resident. Documents lie gzipped in the binary, by
// default leave it as they are, and are inflated, streaming, only for a client
// that does not take gzip.
//
// Dangers: the documents are of the pinned Kubernetes version; a test fails
// when they are not, and go test ./apiserver/openapi -update makes them anew.
//
// It owns no goroutine. It may be imported by apiserver and cmd/edged.
//
// Sources: k8s.io/kube-openapi/pkg/{handler,handler3}.
package openapi
