// Package volume makes the volumes of a Pod on this device: emptyDir, hostPath,
// configMap, secret, downwardAPI, projected, image, and those of claims that are bound
// to local or hostPath PersistentVolumes.
//
// It does not mount them into containers (runtime/engine does, told by
// runtime/pod), makes no PersistentVolumes (runtime/localpath) and knows no storage
// drivers.
//
// Types: [Manager] sets up, refreshes and removes a Pod's volumes. Calls for one
// Pod are made by its worker, one at a time; those for different Pods may run at
// once.
//
// Where. What a Pod may write (emptyDir) is below the data-dir. What edged can
// make again (configMap, secret, downwardAPI, projected) is below the run-dir,
// on a tmpfs: it costs no writes to flash, and no Secret ever reaches the card. So
// are the keys of Pods' certificates, with what is known of them, one file for each
// source: a daemon that starts asks no signer again, a device that starts does.
//
// Promise: such content changes atomically. A volume's files are links into
// "..data", itself a link to a folder with a time in its name, which is replaced
// by a rename; a reader sees all old or all new files. What did not change is not
// written again.
//
// The folder of a PersistentVolume is never made here, so that one that was lost with
// a card is not taken for an empty one. It is given to the Pod's fsGroup once.
//
// Danger: a subPath is resolved inside its volume, never through a link that
// leads out of it (os.Root), and bind mounted, so that what is checked is what is
// used.
//
// Goroutines: none. May be imported by runtime/... and cmd/edged. Source of the
// layout: k8s.io/kubernetes/pkg/volume/util/atomic_writer.go.
package volume
