// Package imageshare lets devices give each other images, so that an image that
// one device has is had by all, and one that several want is fetched from its
// registry once.
//
// It decides nothing about when an image is pulled (runtime/image) and stores
// nothing (runtime/engine). It is no registry for others: only devices of the
// cluster are served, by their certificates.
//
// # Types
//
// A [Share] is both sides. [Share.Handler] serves the content store over the OCI
// distribution API, reading only: manifests by tag and digest, blobs with ranges.
// [Share.Supply] is what a pull asks before the registry (engine.Source).
//
// # How
//
// Who has an image is in every replica: Node.status.images. It tells at most 50
// images and is up to a minute old, so a pull also asks the devices that are
// ready, by HEAD. Only devices of the same architecture count.
//
// Before a device fetches a blob from the registry it makes a claim, at the
// device that comes first in an order that the blob's digest gives: all choose
// the same one without speaking. A claim is an HTTP request that stays open; the
// answer comes when it is this device's turn and names those that have got the
// blob meanwhile. So each blob is fetched once and different blobs by different
// devices at the same time. A device that fails keeps its turn for half a minute,
// since it can go on where it was.
//
// # Promises
//
//   - No traffic, no writes and no timers while nobody pulls.
//   - Without others, or with a claim that fails, a pull is what it was: the
//     registry is asked. Nobody waits for a device that is not ready.
//   - What a device gives is verified by its digest as what a registry gives.
//
// # Goroutines
//
// Those of requests, and while a claim is held elsewhere its connection's.
//
// May be imported by cmd/edged. Source: OCI distribution-spec 1.1.
package imageshare
