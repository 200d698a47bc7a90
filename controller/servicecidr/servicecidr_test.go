package servicecidr

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRemovable(t *testing.T) {
	cidr := func(name string, ranges ...string) *networkingv1.ServiceCIDR {
		return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}}
	}
	for _, tt := range []struct {
		name   string
		others []*networkingv1.ServiceCIDR
		used   string
		want   bool
	}{
		{"nothing uses it", nil, "10.43.0.1", true},
		{"a Service uses it", nil, "10.50.0.7", false},
		{"another has the address", []*networkingv1.ServiceCIDR{cidr("b", "10.50.0.0/28")}, "10.50.0.7", true},
		{"another has other addresses", []*networkingv1.ServiceCIDR{cidr("b", "10.50.0.128/28")}, "10.50.0.7", false},
		{"it is within another", []*networkingv1.ServiceCIDR{cidr("b", "10.0.0.0/8")}, "10.50.0.7", true},
		{"the same again", []*networkingv1.ServiceCIDR{cidr("b", "10.50.0.0/24")}, "10.50.0.7", true},
	} {
		c := cidr("a", "10.50.0.0/24")
		if got := Removable(c, append(tt.others, c), []netip.Addr{netip.MustParseAddr(tt.used)}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
