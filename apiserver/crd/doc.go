// Package crd serves the objects that CustomResourceDefinitions describe.
//
// It is not the kind CustomResourceDefinition (package kinds), nor who accepts
// names and empties what is deleted (controller/customresource).
//
// A Manager follows the definitions in this device's cache and gives the
// registry a row for each that is established; the row's registry.Custom and
// Strategy are a model and a strategy of this package. Upstream's libraries for
// structural schemas prune, default, validate and evaluate rules; upstream's
// handler around them, which brings the generic API server, is left out.
//
// Promises: what a definition says is in force on this device when Settled has
// returned after the cache showed it. With no definitions nothing is compiled
// or kept. Schemas are compiled when an object needs them; what validates and
// tracks fields, the larger part, is forgotten after some minutes without a
// write. A definition's change ends the watches of its objects, as upstream's
// does.
//
// Dangers: objects in the cache are of the version they were stored in.
//
// Goroutines: the Manager's, which ends with its context, and timers. May be
// imported by: apiserver, cmd/edged.
//
// Sources: k8s.io/apiextensions-apiserver/pkg/apiserver/customresource_handler.go
// and pkg/registry/customresource.
package crd
