package discovery

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
)

// Seeker is a member that looks for the others of its cluster, and tells them where
// it is, though nobody gave it a name and a secret: for members that lost each other
// because all of them moved. It speaks and hears mDNS as [Discovery] does, takes no
// connections and knows nothing of forming.
type Seeker struct {
	beacon *beacon
}

// Lost is a member that is without the others.
type Lost struct {
	// Cluster and Member are its ids, Port is the API's and PeerPort the store's.
	Cluster, Member uint64
	Port, PeerPort  uint16
	// Key is one that all members have and nobody else does.
	Key []byte
	// Found tells where another member of the cluster said that it is.
	Found  func(member uint64, addrs []netip.AddrPort)
	Logger *slog.Logger
}

// NewSeeker does nothing yet.
func NewSeeker(l Lost) (*Seeker, error) {
	key, err := hkdf.Key(sha256.New, l.Key, nil, "edged members that seek each other 1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("make a key of the cluster's: %w", err)
	}
	self := Announcement{ID: MemberID(l.Member), Cluster: fmt.Sprintf("members-%016x", l.Cluster), Port: l.Port, PeerPort: l.PeerPort, Member: l.Member}
	return &Seeker{newBeacon(self.Cluster, key, func() Announcement { return self }, heardOf(l.Member, l.Found), l.Logger)}, nil
}

// Run works until ctx ends. It asks when it begins.
func (s *Seeker) Run(ctx context.Context) error { return s.beacon.run(ctx) }

// Ask asks on all links where the other members are; it never waits.
func (s *Seeker) Ask() { s.beacon.ask() }

// MemberID is the id of a device that did not come to its cluster by discovery.
func MemberID(member uint64) (id ID) {
	sum := sha256.Sum256(fmt.Appendf(nil, "edged member %016x", member))
	copy(id[:], sum[:])
	return id
}

// heardOf passes on what other members than self tell.
func heardOf(self uint64, found func(uint64, []netip.AddrPort)) func(Announcement) {
	return func(a Announcement) {
		if a.Member == 0 || a.Member == self {
			return
		}
		addrs := make([]netip.AddrPort, 0, len(a.Addrs))
		for _, ip := range a.Addrs {
			addrs = append(addrs, netip.AddrPortFrom(ip, a.PeerPort))
		}
		found(a.Member, addrs)
	}
}
