// Package cni connects Pods by the plugins of a CNI configuration, in the place of
// the bridge (net/bridge).
//
// It is not a plugin (net/cniplugin is one), and not Services, DNS or policies:
// those are the device's whoever connects its Pods.
//
// [Network] is the configuration in a folder: its first file by name that can be
// read (.conflist, .conf), read again at each call, so that a plugin may be installed
// while Pods wait for it. [Network.Attach] runs its chain with ADD, [Network.Detach]
// with DEL and the configuration that the Pod was attached with, [Network.Sync] ends
// what is attached and not wanted, and has plugins of CNI 1.1 forget the rest (GC).
// [Network.Ready] has them say whether they are available (STATUS).
//
// Promises. A Pod is added once: when the daemon starts again, what the plugins
// answered is read back and they are asked to CHECK it; what fails that is deleted
// and added. What they answered is kept below a folder that a reboot empties, as it
// empties the Pods' namespaces. A call ends after a minute.
//
// Dangers. Addresses that a plugin keeps on disk (host-local does) outlive a power
// cut, and only GC frees them.
//
// Concurrency: a Network's methods may be called from any goroutine, those for one
// Pod by one at a time. Goroutines: none that outlive a call.
//
// May be imported by: cmd/edged.
//
// Sources: containernetworking/cni SPEC.md 1.1.0; what containerd tells plugins of a
// Pod (K8S_POD_NAME and the like).
package cni
