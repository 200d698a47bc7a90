package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"edged/cluster/discovery"
	"edged/cluster/identity"
	"edged/cluster/join"
)

const (
	discoveryMDNS    = "mdns"
	discoveryMembers = "members"
	discoveryNone    = "none"

	// askFirst and askMost are the pauses between the questions of a member that
	// is without others where they are.
	askFirst = 5 * time.Second
	askMost  = 5 * time.Minute
)

func (c *config) validateDiscovery() error {
	if c.bootstrapExpect < 1 {
		return misusef("--bootstrap-expect: %d is not a number of devices", c.bootstrapExpect)
	}
	if c.clusterName != "" {
		if msgs := validation.IsDNS1123Label(c.clusterName); len(msgs) > 0 {
			return misusef("--cluster-name: %q: %s", c.clusterName, msgs[0])
		}
	}
	switch c.discovery {
	case discoveryMembers, discoveryNone:
		if c.bootstrapExpect > 1 {
			return misusef("--bootstrap-expect: devices do not find each other without --discovery mdns")
		}
		return nil
	case discoveryMDNS:
	default:
		return misusef("--discovery: %q is not mdns, members or none", c.discovery)
	}
	if c.clusterName == "" || c.clusterSecretFile == "" {
		return misusef("--discovery mdns: --cluster-name and --cluster-secret-file are needed, the same on all devices")
	}
	data, err := os.ReadFile(c.clusterSecretFile)
	if err != nil {
		return misusef("--cluster-secret-file: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if len(secret) < discovery.MinSecret {
		return misusef("--cluster-secret-file: %s holds %d characters: want a random text of at least %d, as `openssl rand -hex 16` prints", c.clusterSecretFile, len(secret), discovery.MinSecret)
	}
	c.parsed.secret = []byte(secret)
	return nil
}

// openDiscovery makes what finds other devices, if it is wanted.
func (d *device) openDiscovery() {
	if d.cfg.discovery == discoveryMDNS {
		d.discovery = discovery.New(discovery.Config{Name: d.cfg.clusterName, Secret: d.cfg.parsed.secret, Logger: d.log})
	}
}

// form makes this device one of a cluster with those that it finds. What it got
// is written before the keys are: a cut in between is told the same again.
func (d *device) form(ctx context.Context) (*clusterFile, error) {
	c := d.cfg
	if c.bootstrapExpect > 1 {
		if err := d.waitForAddress(ctx); err != nil {
			return nil, err
		}
	}
	d.setPhase(fmt.Sprintf("looking for the devices of cluster %s, of which it expects %d (the log says who is there)", c.clusterName, c.bootstrapExpect))
	listener, ok := d.ports.api.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("--discovery: the API's port is a %T", d.ports.api)
	}
	key, public, err := newDeviceKey()
	if err != nil {
		return nil, err
	}
	out, err := d.discovery.Form(ctx, discovery.Form{
		Dir: c.dataDir, Listener: listener,
		Name: c.nodeName, Port: c.parsed.api.Port(), PeerPort: c.parsed.peer.Port(), Expect: c.bootstrapExpect, Voters: c.voters,
		PeerURLs: func() []string {
			if ip := d.lookForNodeIP(); !ip.IsLoopback() {
				d.nodeIP = ip
			}
			return d.peerURLs()
		},
		PublicKey: public, Found: d.genesis,
	})
	if err != nil {
		return nil, err
	}
	f := &clusterFile{Version: clusterFileVersion, Device: out.ID}
	var shared identity.Shared
	if g := out.Genesis; g != nil {
		d.log.Info("founding the cluster", "cluster", c.clusterName, "voters", len(g.Founders))
		f.Settings, f.Founding, shared = g.Settings, &g.Founding, g.Shared
	} else {
		a := out.Joined
		d.log.Info("joining", "cluster", c.clusterName, "members", len(a.Members), "address", d.nodeIP)
		f.Settings, f.Members, shared = a.Settings, a.Members, identity.Shared{CA: a.CA, CAKey: a.CAKey, ServiceAccountKey: a.ServiceAccountKey}
	}
	if err := f.write(c.dataDir); err != nil {
		return nil, err
	}
	return f, identity.Install(d.pkiDir(), shared, key)
}

// genesis makes the keys of a new cluster, away from those of this device's own.
func (d *device) genesis() (g *discovery.Genesis, err error) {
	dir, err := os.MkdirTemp(d.cfg.runDir, "genesis-")
	if err != nil {
		return nil, fmt.Errorf("--run-dir: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	id, err := identity.Open(identity.Config{Dir: filepath.Join(dir, "pki"), Now: d.clock.Now, Logger: d.log})
	if err != nil {
		return nil, err
	}
	shared, err := id.Share()
	if err != nil {
		return nil, err
	}
	g = &discovery.Genesis{Shared: shared, Settings: map[string]string{}}
	for name, value := range d.cfg.sharedSettings() {
		g.Settings[name] = *value
	}
	return g, nil
}

// runDiscovery tells fresh devices of the cluster, and learns where the others
// are. Without it the cluster goes on.
func (d *device) runDiscovery(ctx context.Context) error {
	if d.discovery == nil {
		return nil
	}
	c, self := d.cfg, d.cluster.Device
	if self == (discovery.ID{}) {
		// It did not come to the cluster by discovery.
		self = discovery.MemberID(d.store.MemberID())
	}
	err := d.discovery.Serve(ctx, discovery.Member{
		Device:  discovery.Device{ID: self, Name: c.nodeName, PeerURLs: d.peerURLs(), Port: c.parsed.api.Port()},
		Cluster: d.store.ClusterID, MemberID: d.store.MemberID(), PeerPort: c.parsed.peer.Port(),
		Founding: d.cluster.Founding, Settings: d.cluster.Settings, Share: d.identity.Share,
		Admit: func(ctx context.Context, req join.Request) (join.Answer, error) {
			answer, err := d.admit(ctx, req)
			if err == nil {
				d.log.Info("a device joins", "device", req.NodeName, "by", "discovery")
			}
			return answer, err
		},
		Found: d.memberFound,
	})
	if err != nil && ctx.Err() == nil {
		d.log.Error("this device is not found by others", "err", err)
	}
	return nil
}

// memberFound takes where another member said that it is.
func (d *device) memberFound(member uint64, addrs []netip.AddrPort) {
	urls := make([]string, 0, len(addrs))
	for _, a := range addrs {
		urls = append(urls, "https://"+a.String())
	}
	d.store.FoundAt(member, urls)
}

// setMisses is told by the store.
func (d *device) setMisses(misses bool) {
	if d.misses.Store(misses); misses {
		select {
		case d.missed <- struct{}{}:
		default:
		}
	}
}

// without is whether this member is without others: it knows no leader, or leads and
// hears nothing of one.
func (d *device) without() bool { return d.store.Leader() == 0 || d.misses.Load() }

// seekMembers looks for others on the links while this member is without them: all may
// have other addresses. It sleeps while it is not.
func (d *device) seekMembers(ctx context.Context) error {
	if d.cfg.discovery == discoveryNone {
		return nil
	}
	lost := d.store.LeaderLost()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.store.Done():
			return nil
		case <-lost:
			lost = nil
		case <-d.missed:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askFirst):
		}
		if d.without() {
			if err := d.seek(ctx); err != nil && ctx.Err() == nil {
				d.log.Error("the other devices are not looked for", "err", err)
			}
		}
		if lost == nil {
			lost = d.store.LeaderLost()
		}
	}
}

// seek asks where the others are for as long as this member is without some.
func (d *device) seek(ctx context.Context) error {
	if d.discovery != nil {
		d.askMembers(ctx, d.discovery.Ask)
		return nil
	}
	shared, err := d.identity.Share()
	if err != nil {
		return err
	}
	seeker, err := discovery.NewSeeker(discovery.Lost{
		Cluster: d.store.ClusterID(), Member: d.store.MemberID(), Port: d.cfg.parsed.api.Port(), PeerPort: d.cfg.parsed.peer.Port(),
		Key: shared.ServiceAccountKey, Found: d.memberFound, Logger: d.log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- seeker.Run(ctx) }()
	d.askMembers(ctx, seeker.Ask)
	cancel()
	return <-done
}

// askMembers calls ask, with growing pauses, for as long as this member is without
// others. A device may be off for days: whoever leads without it seldom looks.
func (d *device) askMembers(ctx context.Context, ask func()) {
	for next, pause := time.Now(), askFirst; d.without(); {
		if now := time.Now(); !now.Before(next) {
			ask()
			next, pause = now.Add(pause), min(2*pause, askMost)
		}
		look := time.Second
		if d.store.Leader() != 0 {
			look = 15 * time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-d.store.Done():
			return
		case <-time.After(look):
		}
	}
}

// alpnHandlers are what the API's port serves beside HTTP.
func (d *device) alpnHandlers(ctx context.Context) map[string]func(*http.Server, *tls.Conn, http.Handler) {
	if d.discovery == nil {
		return nil
	}
	return map[string]func(*http.Server, *tls.Conn, http.Handler){
		discovery.ALPN: func(_ *http.Server, conn *tls.Conn, _ http.Handler) { d.discovery.ServeConn(ctx, conn) },
	}
}
