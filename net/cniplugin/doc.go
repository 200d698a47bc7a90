// Package cniplugin is the bridge as a CNI plugin named edged-bridge, for
// container runtimes other than the daemon's own: it turns the environment and
// the standard input of one call into calls of net/bridge.
//
// It is not used by the daemon, and not the one who forwards host ports (the
// portmap plugin, chained behind, does).
//
// # Types
//
// [Main] is a call of the plugin. The configuration is CNI's, with
//
//	bridge        name of the bridge (edged-cni0)
//	podCIDRs      at most one prefix per address family, this device's
//	clusterCIDRs  where Pods keep their addresses (podCIDRs)
//	serviceCIDRs  routed to the bridge, too
//	mtu           1500
//	masquerade    true: what leaves clusterCIDRs gets the device's address
//	stateDir      a folder that a reboot empties (/run/edged-cni/<network>)
//
// # Promises
//
// All commands of CNI 1.1 and its earlier forms back to 0.3.0. Calls at the same
// time wait for each other. ADD may be repeated, DEL succeeds for what is not
// there, CHECK mends nothing, GC frees what the runtime does not name.
//
// # Goroutines
//
// None.
//
// May be imported by cmd/edged.
//
// Sources: containernetworking/cni SPEC.md 1.1.0.
package cniplugin
