// Package customresource accepts the names of CustomResourceDefinitions, says
// when they are established, and empties those that are being deleted.
//
// It is not what serves their objects (apiserver/crd, on every device).
//
// Types: Accept decides about names and conditions.
//
// Promises: names are given in the order of the definitions' creation; a
// definition is established by the write that accepts its names; its objects
// are gone from the store before it is: none can be made once it is marked as
// being deleted (apiserver/crd ties each creation to it).
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/apiextensions-apiserver/pkg/controller/{status,establish,finalizer}.
package customresource
