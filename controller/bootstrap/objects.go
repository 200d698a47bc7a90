package bootstrap

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

const (
	serviceName  = "kubernetes"
	portName     = "https"
	servicePort  = 443
	skipMirror   = discoveryv1.LabelSkipMirror
	criticalBase = 2_000_000_000 // upstream's SystemCriticalPriority
)

// Namespaces are those that every cluster has.
var Namespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault}

// PriorityClasses are the system's.
func PriorityClasses() []runtime.Object {
	class := func(name string, value int32, description string) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: description,
			PreemptionPolicy: ptr.To(corev1.PreemptLowerPriority),
		}
	}
	return []runtime.Object{
		class("system-node-critical", criticalBase+1000, "Used for system critical pods that must not be moved from their current node."),
		class("system-cluster-critical", criticalBase, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

// Service is default/kubernetes at the given address; port is the API's.
func Service(ip netip.Addr, port uint16) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: serviceName, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Ports:           []corev1.ServicePort{{Name: portName, Port: servicePort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(int32(port))}},
			SessionAffinity: corev1.ServiceAffinityNone,
			Type:            corev1.ServiceTypeClusterIP,
			IPFamilyPolicy:  ptr.To(corev1.IPFamilyPolicySingleStack),
		},
	}
	if ip.IsValid() {
		svc.Spec.ClusterIP = ip.String()
		svc.Spec.ClusterIPs = []string{ip.String()}
	}
	return svc
}

// normal sorts addresses and leaves each once. Only those of the family that
// the first one has are kept: the Service has one family.
func normal(addrs []netip.AddrPort) []netip.AddrPort {
	out := slices.Clone(addrs)
	out = slices.DeleteFunc(out, func(a netip.AddrPort) bool { return a.Addr().Is4() != addrs[0].Addr().Is4() })
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// Endpoints are the addresses of the API in the old shape.
func Endpoints(addrs []netip.AddrPort) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Name: serviceName, Namespace: metav1.NamespaceDefault, Labels: map[string]string{skipMirror: "true"},
	}}
	ports := map[uint16][]corev1.EndpointAddress{}
	var order []uint16
	for _, a := range normal(addrs) {
		if ports[a.Port()] == nil {
			order = append(order, a.Port())
		}
		ports[a.Port()] = append(ports[a.Port()], corev1.EndpointAddress{IP: a.Addr().String()})
	}
	for _, p := range order {
		e.Subsets = append(e.Subsets, corev1.EndpointSubset{
			Addresses: ports[p],
			Ports:     []corev1.EndpointPort{{Name: portName, Port: int32(p), Protocol: corev1.ProtocolTCP}},
		})
	}
	return e
}

// Slice is the same as an EndpointSlice. All devices serve the API on one port.
func Slice(addrs []netip.AddrPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: serviceName, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelServiceName: serviceName},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for i, a := range normal(addrs) {
		if i == 0 {
			if a.Addr().Is6() {
				s.AddressType = discoveryv1.AddressTypeIPv6
			}
			s.Ports = []discoveryv1.EndpointPort{{Name: ptr.To(portName), Port: ptr.To(int32(a.Port())), Protocol: ptr.To(corev1.ProtocolTCP)}}
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return s
}

// Reconcile changes cur, a private copy of what is stored, to what want asks
// of it, and leaves alone what is the user's.
func Reconcile(cur, want runtime.Object) {
	switch w := want.(type) {
	case *corev1.Endpoints:
		c := cur.(*corev1.Endpoints)
		setLabels(c, w.Labels)
		if !equality.Semantic.DeepEqual(c.Subsets, w.Subsets) {
			c.Subsets = w.Subsets
		}
	case *discoveryv1.EndpointSlice:
		c := cur.(*discoveryv1.EndpointSlice)
		setLabels(c, w.Labels)
		c.Endpoints, c.Ports = w.Endpoints, w.Ports
	case *corev1.Service:
		cur.(*corev1.Service).Spec.Ports = w.Spec.Ports
	case *rbacv1.ClusterRole:
		if c := cur.(*rbacv1.ClusterRole); updates(c) && w.AggregationRule == nil {
			c.Rules = union(c.Rules, w.Rules)
			setLabels(c, w.Labels)
		}
	case *rbacv1.Role:
		if c := cur.(*rbacv1.Role); updates(c) {
			c.Rules = union(c.Rules, w.Rules)
		}
	case *rbacv1.ClusterRoleBinding:
		if c := cur.(*rbacv1.ClusterRoleBinding); updates(c) {
			c.Subjects = union(c.Subjects, w.Subjects)
		}
	case *rbacv1.RoleBinding:
		if c := cur.(*rbacv1.RoleBinding); updates(c) {
			c.Subjects = union(c.Subjects, w.Subjects)
		}
	}
}

// updates reports whether the stored object wants what is missing back.
func updates(o metav1.Object) bool {
	return o.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey] == "true"
}

func setLabels(o metav1.Object, labels map[string]string) {
	have := o.GetLabels()
	for k, v := range labels {
		if have == nil {
			have = map[string]string{}
		}
		have[k] = v
	}
	o.SetLabels(have)
}

func union[T any](have, want []T) []T {
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h T) bool { return equality.Semantic.DeepEqual(h, w) }) {
			have = append(have, w)
		}
	}
	return have
}
