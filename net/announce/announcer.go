package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// lifetime of an address that is not renewed: for how long a device whose
	// daemon died answers for it.
	lifetime = 9 * time.Second
	// renewEvery leaves two attempts to fail.
	renewEvery = 3 * time.Second
	// tellTimes is how often the neighbors are told, tellEvery so long: what is
	// sent unasked may be lost, or be followed by the last words of the device
	// that had the address before.
	tellTimes = 4
	tellEvery = 400 * time.Millisecond
)

// Announcer holds addresses on this device's links.
type Announcer struct {
	// Set by New.
	log  *slog.Logger
	wake chan struct{} // holds one

	mu   sync.Mutex // guards the following
	want map[string][]netip.Addr
	// ifFree is what is wanted unless another has it.
	ifFree map[string][]netip.Addr
	again  bool // the neighbors are to be told again
	silent map[string]bool
	until  time.Time // silent is of use
	follow chan struct{}

	// Of the goroutine in Run.
	held    map[netip.Addr]*holding
	asking  map[netip.Addr]*question
	refused map[netip.Addr]bool // another has it
}

// holding is an address that is ours now.
type holding struct {
	link int
	name string
	told int
}

// New prepares an announcer; Run does the work.
func New(log *slog.Logger) *Announcer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Announcer{log: log, wake: make(chan struct{}, 1), want: map[string][]netip.Addr{}, ifFree: map[string][]netip.Addr{},
		follow: make(chan struct{}, 1), held: map[netip.Addr]*holding{}, asking: map[netip.Addr]*question{}, refused: map[netip.Addr]bool{}}
}

// Hold has the device hold these addresses for the sake of who, and no others.
func (a *Announcer) Hold(who string, addrs []netip.Addr) { a.hold(who, addrs, nil) }

// hold is Hold with addresses that are held, too, unless a neighbor has them when it
// is asked.
func (a *Announcer) hold(who string, addrs, ifFree []netip.Addr) {
	a.mu.Lock()
	same := slices.Equal(a.want[who], addrs) && slices.Equal(a.ifFree[who], ifFree)
	a.want[who], a.ifFree[who] = slices.Clone(addrs), slices.Clone(ifFree)
	a.mu.Unlock()
	if !same {
		poke(a.wake)
	}
}

// Missing says of which devices nothing is heard just now, and whether of this one
// nothing was until now. Their addresses are taken if they answer for them no more, and
// the neighbors are told of this device's again: another may have had them.
func (a *Announcer) Missing(nodes []string, back bool) {
	a.mu.Lock()
	a.again = a.again || back
	a.silent, a.until = map[string]bool{}, time.Now().Add(missingFor)
	for _, n := range nodes {
		a.silent[n] = true
	}
	a.mu.Unlock()
	poke(a.wake)
	poke(a.follow)
}

// missing are the devices of Missing, and for how long yet.
func (a *Announcer) missing() (silent map[string]bool, left time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if left = time.Until(a.until); left <= 0 || len(a.silent) == 0 {
		return nil, 0
	}
	return a.silent, left
}

// wanted is what all ask for; true is for what is wanted whoever has it.
func (a *Announcer) wanted() map[netip.Addr]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[netip.Addr]bool{}
	for _, list := range a.ifFree {
		for _, x := range list {
			out[x] = false
		}
	}
	for _, list := range a.want {
		for _, x := range list {
			out[x] = true
		}
	}
	if a.again {
		a.again = false
		for _, h := range a.held {
			h.told = 0
		}
	}
	return out
}

// Run holds what is to be held until ctx ends, and lets go of everything then.
func (a *Announcer) Run(ctx context.Context) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("announce: opening netlink: %w", err)
	}
	defer nl.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var told string
	for {
		select {
		case <-ctx.Done():
			return a.settle(nl, nil)
		case <-a.wake:
		case <-timer.C:
		}
		err := a.settle(nl, a.wanted())
		if text := fmt.Sprint(err); err != nil && text != told { // once
			a.log.Error("addresses are not all announced", "err", err)
			told = text
		} else if err == nil {
			told = ""
		}
		if len(a.held)+len(a.asking) > 0 || err != nil {
			timer.Reset(a.next())
		}
	}
}

// next is when to look again.
func (a *Announcer) next() time.Duration {
	if len(a.asking) > 0 {
		return askEvery
	}
	for _, h := range a.held {
		if h.told < tellTimes {
			return tellEvery
		}
	}
	return renewEvery
}

// settle takes, renews and lets go.
func (a *Announcer) settle(nl *netlink.Handle, want map[netip.Addr]bool) error {
	var errs []error
	for addr, q := range a.asking {
		if whoever, wanted := want[addr]; whoever || !wanted {
			q.close()
			delete(a.asking, addr)
		}
	}
	maps.DeleteFunc(a.refused, func(addr netip.Addr, _ bool) bool { whoever, wanted := want[addr]; return whoever || !wanted })
	for _, addr := range slices.SortedFunc(maps.Keys(a.held), netip.Addr.Compare) {
		if _, wanted := want[addr]; wanted {
			continue
		}
		h := a.held[addr]
		delete(a.held, addr)
		err := nl.AddrDel(linkOf(h.link), &netlink.Addr{IPNet: hostNet(addr)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("letting go of %s: %w", addr, err))
			continue
		}
		a.log.Info("address given up", "address", addr, "link", h.name)
	}
	for addr, whoever := range want {
		if !whoever && a.held[addr] == nil {
			free, err := a.isFree(nl, addr)
			if err != nil {
				a.log.Warn("the neighbors were not asked who has an address: it moves when its device is taken for gone", "address", addr, "err", err)
				a.refused[addr] = true
			}
			if !free {
				continue
			}
		}
		if err := a.take(nl, addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// isFree asks the neighbors, over several calls, whether one of them has an address.
func (a *Announcer) isFree(nl *netlink.Handle, addr netip.Addr) (bool, error) {
	if a.refused[addr] {
		return false, nil
	}
	q := a.asking[addr]
	if q == nil {
		link, err := linkAt(nl, addr)
		if err != nil || link == nil { // elsewhere nobody need answer
			a.refused[addr] = err == nil
			return false, err
		}
		at := link.Attrs()
		if q, err = newQuestion(at.Index, at.Name, at.HardwareAddr, addr); err != nil {
			return false, err
		}
		a.asking[addr] = q
	} else if time.Now().Before(q.until) {
		return false, nil
	} else if q.answered() {
		a.log.Info("a device of which nothing is heard still has its address", "address", addr)
		a.refused[addr] = true
	}
	var err error
	if !a.refused[addr] && q.asked < askTimes {
		if err = q.ask(); err == nil {
			return false, nil
		}
	}
	q.close()
	delete(a.asking, addr)
	return err == nil && !a.refused[addr], err
}

// take adds the address or renews its lifetime, and tells the neighbors.
func (a *Announcer) take(nl *netlink.Handle, addr netip.Addr) error {
	link, err := linkFor(nl, addr)
	if err != nil {
		return err
	}
	at := link.Attrs()
	h := a.held[addr]
	if h != nil && h.link != at.Index {
		_ = nl.AddrDel(linkOf(h.link), &netlink.Addr{IPNet: hostNet(addr)}) // the kernel will, soon
		h = nil
	}
	entry := &netlink.Addr{IPNet: hostNet(addr), ValidLft: int(lifetime.Seconds()), PreferedLft: 0}
	if addr.Is6() {
		entry.Flags = unix.IFA_F_NODAD
	} else {
		// IPv4 knows no deprecated addresses for choosing a source; the
		// link's own, which is older, stays first.
		entry.PreferedLft = entry.ValidLft
	}
	if err := nl.AddrReplace(link, entry); err != nil {
		return fmt.Errorf("adding it to %s: %w", at.Name, err)
	}
	if h == nil {
		h = &holding{link: at.Index, name: at.Name}
		a.held[addr] = h
		a.log.Info("address announced", "address", addr, "link", at.Name)
	}
	if h.told < tellTimes {
		h.told++
		if err := tell(at.Index, at.HardwareAddr, addr); err != nil {
			return fmt.Errorf("telling the neighbors on %s: %w", at.Name, err)
		}
	}
	return nil
}

func familyOf(addr netip.Addr) int {
	if addr.Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// linkAt is the link in whose network the address lies, nil if there is none.
func linkAt(nl *netlink.Handle, addr netip.Addr) (netlink.Link, error) {
	list, err := nl.AddrList(nil, familyOf(addr))
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for _, x := range list {
		if ones, bits := x.Mask.Size(); ones < bits && x.IPNet.Contains(addr.AsSlice()) {
			if l, err := nl.LinkByIndex(x.LinkIndex); err == nil && canAnnounce(l) {
				return l, nil
			}
		}
	}
	return nil, nil
}

// linkFor is the link in whose network the address lies, else the default
// route's.
func linkFor(nl *netlink.Handle, addr netip.Addr) (netlink.Link, error) {
	if l, err := linkAt(nl, addr); l != nil || err != nil {
		return l, err
	}
	routes, err := nl.RouteListFiltered(familyOf(addr), &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		if l, err := nl.LinkByIndex(r.LinkIndex); err == nil && canAnnounce(l) {
			return l, nil
		}
	}
	return nil, errors.New("no link is up in whose network it lies, and there is no default route")
}

// canAnnounce says whether a link has neighbors that ask for addresses.
func canAnnounce(l netlink.Link) bool {
	at := l.Attrs()
	return at.Flags&net.FlagUp != 0 && at.EncapType == "ether" && len(at.HardwareAddr) == 6
}

func linkOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
