package endpointslice

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilnet "k8s.io/utils/net"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

// Manager is the value of the label that says who keeps a slice.
const Manager = "endpointslice-controller.k8s.io"

// Reconcile compares the Pods that svc selects with its slices. node finds a
// Pod's node; nil if there is none.
func Reconcile(svc *corev1.Service, pods []*corev1.Pod, node func(name string) *corev1.Node, have []*discoveryv1.EndpointSlice) Change {
	var groups []Group
	for _, family := range families(svc) {
		groups = append(groups, groupPods(svc, pods, node, family)...)
	}
	return Pack(groups, have, MaxEndpoints, func(t discoveryv1.AddressType) *discoveryv1.EndpointSlice { return blank(svc, t) })
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out = append(out, discoveryv1.AddressTypeIPv6)
		} else {
			out = append(out, discoveryv1.AddressTypeIPv4)
		}
	}
	if len(out) == 0 {
		out = append(out, discoveryv1.AddressTypeIPv4)
	}
	return out
}

// groupPods sorts the endpoints of one family by what their ports are: a named
// port may differ from Pod to Pod. Without endpoints there is one empty group.
func groupPods(svc *corev1.Service, pods []*corev1.Pod, node func(string) *corev1.Node, family discoveryv1.AddressType) []Group {
	byPorts := map[string]*Group{}
	for _, pod := range pods {
		if !InEndpoints(pod, true) {
			continue
		}
		ports, ok := PodPorts(svc, pod)
		if !ok {
			continue
		}
		addrs := addresses(pod, family)
		if len(addrs) == 0 {
			continue
		}
		key := PortsKey(ports)
		if byPorts[key] == nil {
			byPorts[key] = &Group{AddressType: family, Ports: ports}
		}
		byPorts[key].Endpoints = append(byPorts[key].Endpoints, endpoint(svc, pod, node(pod.Spec.NodeName), addrs))
	}
	if len(byPorts) == 0 {
		return []Group{{AddressType: family}}
	}
	var out []Group
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		out = append(out, *byPorts[key])
	}
	return out
}

func blank(svc *corev1.Service, t discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	labels := map[string]string{}
	for k, v := range svc.Labels {
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy && k != corev1.IsHeadlessService {
			labels[k] = v
		}
	}
	if IsHeadless(svc) {
		labels[corev1.IsHeadlessService] = ""
	}
	labels[discoveryv1.LabelServiceName] = svc.Name
	labels[discoveryv1.LabelManagedBy] = Manager
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: podset.NamePrefix(svc.Name), Namespace: svc.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: t,
	}
}

// InEndpoints reports whether a Pod may be an endpoint: it has an address and
// has not ended for good.
func InEndpoints(pod *corev1.Pod, terminating bool) bool {
	switch {
	case podset.IsFinished(pod) || pod.Status.PodIP == "" && len(pod.Status.PodIPs) == 0:
		return false
	case pod.DeletionTimestamp != nil && !terminating:
		return false
	}
	return true
}

func endpoint(svc *corev1.Service, pod *corev1.Pod, node *corev1.Node, addrs []string) discoveryv1.Endpoint {
	serving := podset.IsReady(pod)
	terminating := pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  addrs,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		e.NodeName = ptr.To(pod.Spec.NodeName)
	}
	if node != nil && node.Labels[corev1.LabelTopologyZone] != "" {
		e.Zone = ptr.To(node.Labels[corev1.LabelTopologyZone])
	}
	if HasHostname(svc, pod) {
		e.Hostname = ptr.To(pod.Spec.Hostname)
	}
	e.Hints = hints(svc, &e, ready)
	return e
}

// hints say where an endpoint should be used from, if the Service prefers that
// to an even spread (KEP-4444, KEP-3015).
func hints(svc *corev1.Service, e *discoveryv1.Endpoint, ready bool) *discoveryv1.EndpointHints {
	if svc.Spec.TrafficDistribution == nil || !ready {
		return nil
	}
	h := &discoveryv1.EndpointHints{}
	switch *svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		if e.NodeName != nil {
			h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
		}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if h.ForNodes == nil && h.ForZones == nil {
		return nil
	}
	return h
}

// HasHostname reports whether DNS gives the Pod a name below the Service's.
func HasHostname(svc *corev1.Service, pod *corev1.Pod) bool {
	return pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name && svc.Namespace == pod.Namespace
}

func addresses(pod *corev1.Pod, family discoveryv1.AddressType) []string {
	ips := pod.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if ip.IP != "" && utilnet.IsIPv6String(ip.IP) == (family == discoveryv1.AddressTypeIPv6) {
			return []string{ip.IP}
		}
	}
	return nil
}

// PodPorts are the Service's ports as this Pod has them. A port whose name the
// Pod does not have is left out; false if none is left of a Service that has
// ports.
func PodPorts(svc *corev1.Service, pod *corev1.Pod) ([]discoveryv1.EndpointPort, bool) {
	if IsHeadless(svc) && len(svc.Spec.Ports) == 0 {
		return []discoveryv1.EndpointPort{}, true
	}
	var out []discoveryv1.EndpointPort
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		n, ok := targetPort(pod, p)
		if !ok {
			continue
		}
		out = append(out, discoveryv1.EndpointPort{
			Name: ptr.To(p.Name), Port: ptr.To(n), Protocol: ptr.To(p.Protocol), AppProtocol: p.AppProtocol,
		})
	}
	return out, len(out) > 0
}

// targetPort finds the port of the Pod that a Service's port leads to.
func targetPort(pod *corev1.Pod, p *corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if n := p.TargetPort.IntVal; n != 0 {
			return n, true
		}
		return p.Port, true
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if n, ok := containerPort(c, p); ok {
				return n, true
			}
		}
	}
	for i := range pod.Spec.Containers {
		if n, ok := containerPort(&pod.Spec.Containers[i], p); ok {
			return n, true
		}
	}
	return 0, false
}

func containerPort(c *corev1.Container, p *corev1.ServicePort) (int32, bool) {
	for _, port := range c.Ports {
		if port.Name == p.TargetPort.StrVal && port.Protocol == p.Protocol {
			return port.ContainerPort, true
		}
	}
	return 0, false
}
