package proxy

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"edged/net/nft"
)

// Network is what the rules need to know of the device and its cluster. It does
// not change while the daemon runs.
type Network struct {
	NodeName     string
	Bridge       string         // the link of this device's Pods
	PodCIDRs     []netip.Prefix // this device's
	ClusterCIDRs []netip.Prefix // of all Pods of the cluster
	ServiceCIDRs []netip.Prefix
	// KeepSources says that others connect the Pods, and replace the source
	// addresses of what they send to the outside where that is wanted.
	KeepSources bool
	// Reserved are Service addresses that the device itself answers (DNS):
	// Services that have them are left alone.
	Reserved []netip.Addr
	// Balance picks a number below n; nft.FlowHash where the kernel has no
	// nft.Random.
	Balance func(is6 bool, n uint32) nft.Value
}

// State is all that the rules are made from. Objects are not changed and may be
// shared; an object that is the same pointer is taken to be unchanged.
type State struct {
	Services  []*corev1.Service
	Slices    []*discoveryv1.EndpointSlice
	HostPorts []HostPort
	Zone      string // of this device, for topology hints
}

// HostPort is a port of the device that leads to a Pod of it.
type HostPort struct {
	HostIP   netip.Addr // unset: every address of the device
	HostPort uint16
	Protocol string
	PodIPs   []netip.Addr
	PodPort  uint16
}

func (n *Network) check() error {
	if n.NodeName == "" {
		return errors.New("no node name given")
	}
	if n.Bridge == "" {
		return errors.New("no bridge given")
	}
	for _, p := range n.PodCIDRs {
		covered := false
		for _, c := range n.ClusterCIDRs {
			covered = covered || c.Overlaps(p) && c.Bits() <= p.Bits()
		}
		if !covered {
			return fmt.Errorf("the Pod CIDR %s is not in the cluster's %v", p, n.ClusterCIDRs)
		}
	}
	return nil
}

// isLocal says whether an endpoint is a Pod of this device.
func (n *Network) isLocal(nodeName *string, a netip.Addr) bool {
	if nodeName != nil {
		return *nodeName == n.NodeName
	}
	for _, p := range n.PodCIDRs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
