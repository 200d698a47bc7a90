package kinds

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	api "k8s.io/kubernetes/pkg/apis/core"

	"edged/apiserver/registry"
)

// podRanges names the object that every transaction which gives a Node its Pod
// addresses reads and writes: of two that run at a time one is repeated and sees
// what the other took.
const podRanges = "podcidrs"

var nodeResource = corev1.Resource("nodes")

// podCIDRs gives each Node a range of Pod addresses, as upstream's nodeipam
// controller does, but in the Node's own transaction: no two Nodes ever have the
// same one.
type podCIDRs struct {
	clusters []netip.Prefix
}

// nodeBits is the size of a Node's range: 254 addresses, upstream's default
// for IPv4; of IPv6 a /64.
func nodeBits(cluster netip.Prefix) int {
	if cluster.Addr().Is4() {
		return max(24, cluster.Bits())
	}
	return max(64, cluster.Bits())
}

// transact is the Node's registry.Kind.Transact.
func (p podCIDRs) transact(tx *registry.Tx, old, obj runtime.Object) error {
	node, _ := obj.(*api.Node)
	was, _ := old.(*api.Node)
	if node == nil || len(p.clusters) == 0 {
		return nil
	}
	if was != nil && (len(was.Spec.PodCIDRs) > 0 || len(node.Spec.PodCIDRs) == 0) {
		return nil // given at creation, and validation lets none change
	}
	lock := &corev1.RangeAllocation{ObjectMeta: metav1.ObjectMeta{Name: podRanges}}
	if obj, ok := tx.Get(rangeResource, "", podRanges); ok {
		lock = obj.(*corev1.RangeAllocation).DeepCopy()
	}
	lock.Range, lock.Data = fmt.Sprint(p.clusters), []byte(node.Name)
	var taken []netip.Prefix
	for _, o := range tx.List(nodeResource) {
		other := o.(*corev1.Node)
		if other.Name == node.Name {
			continue
		}
		for _, s := range other.Spec.PodCIDRs {
			if c, err := netip.ParsePrefix(s); err == nil {
				taken = append(taken, c)
			}
		}
	}
	if err := p.fill(node, taken); err != nil {
		return err
	}
	return tx.Put(rangeResource, lock)
}

func (p podCIDRs) fill(node *api.Node, taken []netip.Prefix) error {
	for i, s := range node.Spec.PodCIDRs {
		c, err := netip.ParsePrefix(s)
		if err == nil && overlaps(c, taken) {
			path := field.NewPath("spec", "podCIDRs").Index(i)
			return apierrors.NewInvalid(api.Kind("Node"), node.Name, field.ErrorList{field.Invalid(path, s, "another Node has these addresses")})
		}
	}
	if len(node.Spec.PodCIDRs) > 0 {
		return nil
	}
	for _, cluster := range p.clusters {
		c, ok := firstFree(cluster, nodeBits(cluster), taken)
		if !ok {
			return apierrors.NewInternalError(fmt.Errorf("the cluster's Pod addresses %s have no range left for node %s", cluster, node.Name))
		}
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, c.String())
	}
	return nil
}

func overlaps(c netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(c) {
			return true
		}
	}
	return false
}

// firstFree is the first range of that size in cluster which overlaps none taken.
func firstFree(cluster netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, bool) {
	for a := cluster.Masked().Addr(); a.IsValid() && cluster.Contains(a); {
		c := netip.PrefixFrom(a, bits)
		if !overlaps(c, taken) {
			return c, true
		}
		a = after(c)
	}
	return netip.Prefix{}, false
}

// after is the first address beyond c; invalid if there is none.
func after(c netip.Prefix) netip.Addr {
	b := c.Addr().AsSlice()
	for i := (c.Bits() - 1) / 8; i >= 0; i-- {
		step := 1
		if i == (c.Bits()-1)/8 {
			step = 1 << (7 - (c.Bits()-1)%8)
		}
		if sum := int(b[i]) + step; sum < 256 {
			b[i] = byte(sum)
			a, _ := netip.AddrFromSlice(b)
			return a
		} else {
			b[i] = byte(sum - 256)
		}
	}
	return netip.Addr{}
}
