package kinds

import (
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/ingressclass"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"

	"edged/apiserver/registry"
)

func networking() []*registry.Kind {
	v1 := networkingv1.SchemeGroupVersion
	ingresses := withStatus(row[networkingv1.Ingress, networkingv1.IngressList](v1, "ingresses", ingress.Strategy, "ing"), ingress.StatusStrategy)
	ingresses.Prefix = "ingress"
	return []*registry.Kind{
		ingresses,
		row[networkingv1.IngressClass, networkingv1.IngressClassList](v1, "ingressclasses", ingressclass.Strategy),
		row[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](v1, "networkpolicies", networkpolicy.Strategy, "netpol"),
		row[networkingv1.IPAddress, networkingv1.IPAddressList](v1, "ipaddresses", ipaddress.Strategy, "ip"),
		withStatus(row[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](v1, "servicecidrs", servicecidr.Strategy), servicecidr.StatusStrategy),
	}
}
