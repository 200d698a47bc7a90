// Package apiserver is the Kubernetes API over HTTP: what kubectl, client-go
// and other people's controllers talk to.
//
// A request passes, in this order: recovery, the parse of its path
// (RequestInfo), the limit of requests in flight, its deadline, authentication,
// impersonation, authorization, and then the handler of its verb, which turns
// query and body into a call of apiserver/registry and the result into the
// form that the client negotiated: JSON, YAML or protobuf, as it is, as a
// Table or as metadata alone.
//
// It is not the meaning of the verbs (apiserver/registry) or of the kinds
// (apiserver/kinds), and nobody but HTTP clients goes through it: controllers
// and the node agent in this process call the registry.
//
// Types: New builds the Server, an http.Handler, from a Config whose fields
// are the collaborators. NodeConnector is how logs, exec, attach and
// port-forward reach the device that runs a Pod.
//
// Promises: paths, media types, status codes, tables and the wording of errors
// are upstream's. Lists are encoded object by object, so that a list costs the
// client's memory and not the device's. Watches are flushed event by event.
//
// Dangers: objects from the registry are shared with the whole process;
// nothing here may change them. A handler may hijack its connection, so nothing
// may wrap the ResponseWriter without passing Hijack on (http.NewResponseController).
//
// Goroutines: none of its own; it runs in those of http.Server.
//
// It may be imported by cmd/edged only.
//
// Sources: k8s.io/apiserver/pkg/endpoints/{filters,handlers,discovery},
// k8s.io/kubernetes/pkg/registry/core/pod/rest.
package apiserver
