package kinds

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	serviceapi "k8s.io/kubernetes/pkg/api/service"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

var (
	ipAddressResource   = schema.GroupResource{Group: networkingv1.GroupName, Resource: "ipaddresses"}
	serviceCIDRResource = schema.GroupResource{Group: networkingv1.GroupName, Resource: "servicecidrs"}
	rangeResource       = schema.GroupResource{Resource: "rangeallocations"}

	errIPTaken    = errors.New("provided IP is already allocated")
	errIPForeign  = errors.New("the provided network does not match the current range")
	errRangeFull  = errors.New("range is full")
	errPortTaken  = errors.New("provided port is already allocated")
	nodePortRange = "servicenodeports" // the RangeAllocation's name, as upstream's
)

// allocator gives Services their addresses and node ports. It has no state: an
// address is held by the IPAddress object of that name, node ports by the bits
// of one RangeAllocation, and both are written in the transaction that writes
// the Service. So nothing can leak, nothing needs repair, and whoever allocates
// the same at the same time loses the race and tries again.
//
// Addresses and ports are chosen by a hash of the Service's name, then upwards:
// a Service that is deleted and made again mostly gets its old address back.
type allocator struct {
	ranges          []addressRange
	portFirst, last int
}

type addressRange struct {
	prefix netip.Prefix
	family api.IPFamily
	size   uint64 // usable addresses, from base on
	static uint64 // the first of them are left to explicit requests at first
	base   netip.Addr
	object string // the ServiceCIDR, if it is not the cluster's own range
}

// maxRange bounds the addresses used of a huge (IPv6) range.
const maxRange = 1 << 20

func newAllocator(cfg Config) *allocator {
	a := &allocator{portFirst: cfg.NodePortFirst, last: cfg.NodePortLast}
	if a.portFirst == 0 {
		a.portFirst, a.last = 30000, 32767
	}
	prefixes := cfg.ServiceCIDRs
	if len(prefixes) == 0 {
		prefixes = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	}
	for _, p := range prefixes {
		a.ranges = append(a.ranges, newAddressRange(p.Masked()))
	}
	return a
}

func newAddressRange(p netip.Prefix) addressRange {
	r := addressRange{prefix: p, family: api.IPv6Protocol, base: p.Addr().Next(), size: maxRange}
	hostBits := p.Addr().BitLen() - p.Bits()
	if hostBits < 20 {
		r.size = 1<<hostBits - 1 // not the network's own address
	}
	if p.Addr().Is4() {
		r.family = api.IPv4Protocol
		if hostBits <= 20 && r.size > 1 {
			r.size-- // nor the broadcast address
		}
	}
	// Upstream's band: min(max(16, size/16), 256), none in a tiny range.
	if total := r.size + 2; total > 16 {
		r.static = min(max(16, total/16), 256)
	}
	return r
}

func (a *allocator) rangeOf(f api.IPFamily) *addressRange {
	for i := range a.ranges {
		if a.ranges[i].family == f {
			return &a.ranges[i]
		}
	}
	return nil
}

// transact is the Service's registry.Kind.Transact.
func (a *allocator) transact(tx *registry.Tx, old, obj runtime.Object) error {
	was, _ := old.(*api.Service)
	svc, _ := obj.(*api.Service)
	if svc != nil {
		if was != nil {
			keepAllocated(svc, was)
		}
		normalizeClusterIPs(svc, was)
		if err := a.initFamilies(svc, was); err != nil {
			return err
		}
	}
	if err := a.addresses(tx, svc, was); err != nil {
		return err
	}
	return a.nodePorts(tx, svc, was)
}

// addresses allocates what svc lacks and moves what it holds from was.
func (a *allocator) addresses(tx *registry.Tx, svc, was *api.Service) error {
	held := heldAddresses(was)
	if svc != nil && needsClusterIP(svc) && svc.Spec.ClusterIP != api.ClusterIPNone && !slices.Contains(svc.Spec.ClusterIPs, api.ClusterIPNone) {
		if err := a.fill(tx, svc, held); err != nil {
			return err
		}
	}
	wanted := heldAddresses(svc)
	for _, ip := range held {
		if !slices.Contains(wanted, ip) {
			if _, ok := tx.Get(ipAddressResource, "", ip); ok {
				tx.Delete(ipAddressResource, "", ip)
			}
		}
	}
	for _, ip := range wanted {
		if !slices.Contains(held, ip) {
			if err := tx.Put(ipAddressResource, newIPAddress(ip, svc)); err != nil {
				return err
			}
		}
	}
	return nil
}

// heldAddresses are the addresses that a Service keeps others from using.
func heldAddresses(svc *api.Service) []string {
	if svc == nil || !needsClusterIP(svc) {
		return nil
	}
	var out []string
	for _, ip := range svc.Spec.ClusterIPs {
		if ip != "" && ip != api.ClusterIPNone {
			out = append(out, ip)
		}
	}
	return out
}

// fill completes svc's clusterIPs, one per family, and checks those given.
func (a *allocator) fill(tx *registry.Tx, svc *api.Service, held []string) error {
	path := field.NewPath("spec", "clusterIPs")
	invalid := func(msg string) error {
		return apierrors.NewInvalid(api.Kind("Service"), svc.Name, field.ErrorList{field.Invalid(path, svc.Spec.ClusterIPs, msg)})
	}
	for i, family := range svc.Spec.IPFamilies {
		if i >= len(svc.Spec.ClusterIPs) {
			svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, "")
		}
		ranges := a.rangesOf(tx, family)
		switch ip := svc.Spec.ClusterIPs[i]; {
		case ip == "" && len(ranges) > 0:
			chosen, err := chooseIn(ranges, tx, svc.Namespace+"/"+svc.Name)
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %w", svc.Name, err))
			}
			svc.Spec.ClusterIPs[i] = chosen
		case ip != "" && !slices.Contains(held, ip):
			addr, err := netip.ParseAddr(ip)
			if err == nil && !claimIn(ranges, tx, addr) {
				err = errIPForeign
			}
			if err == nil {
				if _, taken := tx.Get(ipAddressResource, "", addr.String()); taken {
					err = errIPTaken
				}
			}
			if err != nil {
				return invalid(fmt.Sprintf("failed to allocate IP %v: %v", ip, err))
			}
		}
		if i == 0 {
			svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
		}
	}
	return nil
}

// contains leaves out the network's own address and IPv4's broadcast address, of
// which tiny ranges have none.
func (r *addressRange) contains(addr netip.Addr) bool {
	if !r.prefix.Contains(addr) || addr == r.prefix.Addr() {
		return false
	}
	tiny := r.prefix.Bits() >= addr.BitLen()-1
	return addr.Is6() || tiny || r.prefix.Contains(addr.Next())
}

// rangesOf are the family's range that the cluster was made with and those of
// ServiceCIDRs that are ready and stay.
func (a *allocator) rangesOf(tx *registry.Tx, f api.IPFamily) []addressRange {
	own := a.rangeOf(f)
	if own == nil {
		return nil
	}
	out := []addressRange{*own}
	for _, obj := range tx.List(serviceCIDRResource) {
		c := obj.(*networkingv1.ServiceCIDR)
		if c.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
			continue
		}
		for _, s := range c.Spec.CIDRs {
			if p, err := netip.ParsePrefix(s); err == nil && p.Masked() != own.prefix {
				if r := newAddressRange(p.Masked()); r.family == f {
					r.object = c.Name
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// hold has the transaction fail if the range is not what it was.
func (r *addressRange) hold(tx *registry.Tx) {
	if r.object != "" {
		tx.Get(serviceCIDRResource, "", r.object)
	}
}

// chooseIn finds a free address in the first range that has one.
func chooseIn(ranges []addressRange, tx *registry.Tx, name string) (string, error) {
	for i := range ranges {
		ip, err := ranges[i].choose(tx, name)
		if err == nil {
			ranges[i].hold(tx)
		}
		if !errors.Is(err, errRangeFull) {
			return ip, err
		}
	}
	return "", errRangeFull
}

// claimIn reports whether the address is of one of the ranges.
func claimIn(ranges []addressRange, tx *registry.Tx, addr netip.Addr) bool {
	for i := range ranges {
		if ranges[i].contains(addr) {
			ranges[i].hold(tx)
			return true
		}
	}
	return false
}

// choose finds a free address: outside the static band first.
func (r *addressRange) choose(tx *registry.Tx, name string) (string, error) {
	h := hash(name)
	for _, band := range [][2]uint64{{r.static, r.size}, {0, r.static}} {
		n := band[1] - band[0]
		for i := range n {
			ip := addrAt(r.base, band[0]+(h+i)%n).String()
			if tx.Exists(ipAddressResource, "", ip) {
				continue
			}
			tx.Get(ipAddressResource, "", ip) // hold the transaction to its being free
			return ip, nil
		}
	}
	return "", errRangeFull
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64() >> 1
}

func addrAt(base netip.Addr, offset uint64) netip.Addr {
	b := base.As16()
	for i := len(b) - 1; i >= 0 && offset > 0; i-- {
		offset += uint64(b[i])
		b[i] = byte(offset)
		offset >>= 8
	}
	addr := netip.AddrFrom16(b)
	if base.Is4() {
		return addr.Unmap()
	}
	return addr
}

func newIPAddress(ip string, svc *api.Service) *networkingv1.IPAddress {
	family := string(api.IPv4Protocol)
	if addr, err := netip.ParseAddr(ip); err == nil && addr.Is6() {
		family = string(api.IPv6Protocol)
	}
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: ip, UID: types.UID(uuid.NewUUID()), CreationTimestamp: svc.CreationTimestamp, Generation: 1,
			Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: family,
				networkingv1.LabelManagedBy:       "ipallocator.k8s.io",
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: svc.Namespace, Name: svc.Name,
		}},
	}
}

// nodePorts allocates what svc lacks and moves what it holds from was.
func (a *allocator) nodePorts(tx *registry.Tx, svc, was *api.Service) error {
	held := heldNodePorts(was)
	bits, stored := a.readPorts(tx, svc, held)
	p := &portPicker{a: a, tx: tx, bits: bits, held: held}
	if svc != nil && hasNodePorts(svc) {
		if err := p.fill(svc); err != nil {
			return err
		}
	}
	if svc != nil && serviceapi.NeedsHealthCheck(svc) {
		if err := p.healthCheck(svc); err != nil {
			return apierrors.NewInternalError(err)
		}
	}
	wanted := heldNodePorts(svc)
	for _, port := range held {
		if !slices.Contains(wanted, port) {
			p.set(port, 0)
		}
	}
	for _, port := range wanted {
		if !slices.Contains(held, port) {
			p.set(port, 1)
		}
	}
	if !p.changed {
		return nil
	}
	out := &corev1.RangeAllocation{ObjectMeta: metav1.ObjectMeta{Name: nodePortRange}}
	if stored != nil {
		out = stored.DeepCopy()
	}
	out.Range, out.Data = fmt.Sprintf("%d-%d", a.portFirst, a.last), bits.Bytes()
	return tx.Put(rangeResource, out)
}

// readPorts reads the bits of allocated ports. Only Services that have or want
// node ports look, so that others do not race for the one object.
func (a *allocator) readPorts(tx *registry.Tx, svc *api.Service, held []int32) (*big.Int, *corev1.RangeAllocation) {
	bits := new(big.Int)
	if len(held) == 0 && (svc == nil || !hasNodePorts(svc)) {
		return bits, nil
	}
	obj, ok := tx.Get(rangeResource, "", nodePortRange)
	if !ok {
		return bits, nil
	}
	stored := obj.(*corev1.RangeAllocation)
	return bits.SetBytes(stored.Data), stored
}

// heldNodePorts are the ports that a Service keeps others from using.
func heldNodePorts(svc *api.Service) []int32 {
	if svc == nil || !hasNodePorts(svc) {
		return nil
	}
	var out []int32
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, p.NodePort)
		}
	}
	if serviceapi.NeedsHealthCheck(svc) && svc.Spec.HealthCheckNodePort != 0 {
		out = append(out, svc.Spec.HealthCheckNodePort)
	}
	return out
}

// portPicker gives out node ports within one transaction.
type portPicker struct {
	a       *allocator
	tx      *registry.Tx
	bits    *big.Int
	held    []int32
	changed bool
}

func (p *portPicker) inRange(port int32) bool {
	return int(port) >= p.a.portFirst && int(port) <= p.a.last
}

func (p *portPicker) set(port int32, bit uint) {
	if i := int(port) - p.a.portFirst; p.inRange(port) && p.bits.Bit(i) != bit {
		p.bits.SetBit(p.bits, i, bit)
		p.changed = true
	}
}

// claim takes a port that was asked for.
func (p *portPicker) claim(port int32) error {
	switch {
	case slices.Contains(p.held, port):
		return nil
	case !p.inRange(port):
		return fmt.Errorf("provided port is not in the valid range. The range of valid ports is %d-%d", p.a.portFirst, p.a.last)
	case p.bits.Bit(int(port)-p.a.portFirst) == 1:
		return errPortTaken
	}
	p.set(port, 1)
	return nil
}

// choose takes a free port.
func (p *portPicker) choose(name string) (int32, error) {
	n := p.a.last - p.a.portFirst + 1
	static := 0 // upstream's band for explicit requests
	if n > 16 {
		static = min(max(16, n/32), 128)
	}
	h := hash(name)
	for _, band := range [][2]int{{static, n}, {0, static}} {
		size := band[1] - band[0]
		for i := range size {
			bit := band[0] + int((h+uint64(i))%uint64(size))
			if p.bits.Bit(bit) == 0 {
				port := int32(p.a.portFirst + bit)
				p.set(port, 1)
				return port, nil
			}
		}
	}
	return 0, errRangeFull
}

// fill completes the node ports of svc. Ports of the same number (TCP and UDP)
// share one, as upstream does on create.
func (p *portPicker) fill(svc *api.Service) error {
	shared := map[int32]int32{}
	claimed := map[int32]bool{}
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		if port.NodePort == 0 || claimed[port.NodePort] {
			continue
		}
		if err := p.claim(port.NodePort); err != nil {
			errs := field.ErrorList{field.Invalid(field.NewPath("spec", "ports").Index(i).Child("nodePort"), port.NodePort, err.Error())}
			return apierrors.NewInvalid(api.Kind("Service"), svc.Name, errs)
		}
		claimed[port.NodePort] = true
		shared[port.Port] = port.NodePort
	}
	if !(svc.Spec.Type == api.ServiceTypeNodePort || ptr.Deref(svc.Spec.AllocateLoadBalancerNodePorts, true)) {
		return nil
	}
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		if port.NodePort != 0 {
			continue
		}
		if np, ok := shared[port.Port]; ok && !usedWith(svc, np, port.Protocol) {
			port.NodePort = np
			continue
		}
		np, err := p.choose(svc.Namespace + "/" + svc.Name + "/" + port.Name)
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
		}
		port.NodePort = np
		shared[port.Port] = np
	}
	return nil
}

func usedWith(svc *api.Service, nodePort int32, protocol api.Protocol) bool {
	return slices.ContainsFunc(svc.Spec.Ports, func(p api.ServicePort) bool {
		return p.NodePort == nodePort && p.Protocol == protocol
	})
}

func (p *portPicker) healthCheck(svc *api.Service) error {
	if port := svc.Spec.HealthCheckNodePort; port != 0 {
		if err := p.claim(port); err != nil {
			return fmt.Errorf("failed to allocate requested HealthCheck NodePort %v: %v", port, err)
		}
		return nil
	}
	port, err := p.choose(svc.Namespace + "/" + svc.Name + "/healthcheck")
	if err != nil {
		return fmt.Errorf("failed to allocate a HealthCheck NodePort %v: %v", port, err)
	}
	svc.Spec.HealthCheckNodePort = port
	return nil
}

// rangeAllocations holds the bits of allocated node ports, under upstream's
// key.
func rangeAllocations() *registry.Kind {
	k := row[corev1.RangeAllocation, corev1.PodList](corev1.SchemeGroupVersion, "rangeallocations", newConfigMapStrategy())
	k.Namespaced = false
	k.NewList = nil
	k.Prefix = "ranges"
	k.Hidden = true
	return k
}
