package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"edged/net/bridge"
	"edged/net/cni"
	"edged/net/policy"
	"edged/net/proxy"
)

// podNetwork connects Pods: it is pod.Network, and forgets what is gone.
type podNetwork interface {
	Attach(ctx context.Context, p *corev1.Pod, ns string) ([]string, error)
	Detach(ctx context.Context, uid string) error
	Sync(ctx context.Context, keep []string) error
}

// network is the bridge as runtime/pod sees it, with the policies that protect
// what is attached.
type network struct {
	br    *bridge.Bridge
	rules *policy.Enforcer
}

func (n network) Attach(ctx context.Context, p *corev1.Pod, ns string) ([]string, error) {
	ports, err := hostPortsOf(p)
	if err != nil {
		return nil, err
	}
	att, err := n.br.Attach(ctx, bridge.AttachRequest{ID: string(p.UID), NetNS: ns, IfName: "eth0", HostPorts: ports})
	if err != nil {
		return nil, err
	}
	if err := n.rules.Protect(ctx, p); err != nil {
		return nil, err
	}
	return texts(att.IPs), nil
}

func (n network) Detach(ctx context.Context, uid string) error { return n.br.Detach(ctx, uid) }

func (n network) Sync(ctx context.Context, keep []string) error { return n.br.Sync(ctx, keep) }

func texts(ips []netip.Addr) []string {
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

func hostPortsOf(p *corev1.Pod) (out []bridge.HostPort, err error) {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			for _, port := range c.Ports {
				if port.HostPort == 0 {
					continue
				}
				hp := bridge.HostPort{HostPort: uint16(port.HostPort), ContainerPort: uint16(port.ContainerPort), Protocol: string(port.Protocol)}
				if port.HostIP != "" {
					ip, err := netip.ParseAddr(port.HostIP)
					if err != nil {
						return nil, fmt.Errorf("hostIP %q: %w", port.HostIP, err)
					}
					if !ip.IsUnspecified() {
						hp.HostIP = ip
					}
				}
				out = append(out, hp)
			}
		}
	}
	return out, nil
}

func hostPorts(m []bridge.PortMapping) []proxy.HostPort {
	out := make([]proxy.HostPort, 0, len(m))
	for _, p := range m {
		out = append(out, proxy.HostPort{HostIP: p.HostIP, HostPort: p.HostPort.HostPort, Protocol: p.Protocol, PodIPs: p.PodIPs, PodPort: p.ContainerPort})
	}
	return out
}

// pluginNetwork is the plugins of --cni-conf-dir as runtime/pod sees them. Host
// ports and policies stay the device's.
type pluginNetwork struct {
	cni     *cni.Network
	rules   *policy.Enforcer
	publish func([]proxy.HostPort)

	mu sync.Mutex
	// guarded by mu
	ports map[string][]proxy.HostPort // by Pod
}

func (n *pluginNetwork) Attach(ctx context.Context, p *corev1.Pod, ns string) ([]string, error) {
	ports, err := hostPortsOf(p)
	if err != nil {
		return nil, err
	}
	ips, err := n.cni.Attach(ctx, cni.Request{ID: string(p.UID), Namespace: p.Namespace, Name: p.Name, NetNS: ns})
	if err != nil {
		return nil, err
	}
	var mapped []bridge.PortMapping
	for _, port := range ports {
		mapped = append(mapped, bridge.PortMapping{HostPort: port, PodIPs: ips})
	}
	n.setPorts(string(p.UID), hostPorts(mapped))
	if err := n.rules.Protect(ctx, p); err != nil {
		return nil, err
	}
	return texts(ips), nil
}

// setPorts has the host ports of all Pods published when those of one change.
func (n *pluginNetwork) setPorts(uid string, ports []proxy.HostPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(ports) == 0 && len(n.ports[uid]) == 0 {
		return
	}
	n.ports[uid] = ports
	if len(ports) == 0 {
		delete(n.ports, uid)
	}
	var all []proxy.HostPort
	for _, list := range n.ports {
		all = append(all, list...)
	}
	n.publish(all)
}

func (n *pluginNetwork) Detach(ctx context.Context, uid string) error {
	n.setPorts(uid, nil)
	return n.cni.Detach(ctx, uid)
}

func (n *pluginNetwork) Sync(ctx context.Context, keep []string) error { return n.cni.Sync(ctx, keep) }
