package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"edged/apiserver/registry"
	"edged/cluster/discovery"
	"edged/cluster/identity"
	"edged/cluster/join"
	"edged/internal/atomicfile"
	"edged/raftstore"
)

// clusterFile is what this device knows of its cluster before its store is open.
type clusterFile struct {
	Version int `json:"version"`
	// Settings are flags that all devices of a cluster share.
	Settings map[string]string `json:"settings"`
	// Members are where the store finds the others when it is empty; none on the
	// device that founded the cluster.
	Members []join.Member `json:"members,omitempty"`
	// Device is this device's id in discovery, Founding who the cluster's first
	// voters were, on those.
	Device   discovery.ID        `json:"device,omitzero"`
	Founding *discovery.Founding `json:"founding,omitempty"`
	// NodeName is what this device is called since its first start, whatever its
	// hostname becomes.
	NodeName string `json:"nodeName,omitempty"`
}

const (
	clusterFileName    = "cluster.json"
	clusterFileVersion = 1
	tick               = 100 * time.Millisecond
	heartbeat          = 500 * time.Millisecond
	electionTime       = 2 * time.Second
	// noProbes has TCP not look after connections of members, who do so themselves:
	// a probe every 15 s in each that idles is much where it is metered.
	noProbes = -1
	// anAddress is how often a device that joins looks for an address.
	anAddress = time.Second
	// askAgain is how often one that was let in asks for the cluster's state while
	// nobody answers.
	askAgain = time.Second
)

// sharedSettings are the flags of clusterFile.Settings.
func (c *config) sharedSettings() map[string]*string {
	return map[string]*string{
		"cluster-cidr": &c.clusterCIDR, "service-cidr": &c.serviceCIDR, "cluster-dns": &c.clusterDNS, "cluster-domain": &c.clusterDomain,
	}
}

// openCluster makes this device one of a cluster: of the one it is of already,
// of the one at --join, or of one of its own.
func (d *device) openCluster(ctx context.Context) error {
	c := d.cfg
	there, err := identity.Exists(d.pkiDir())
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	f, err := readClusterFile(c.dataDir)
	if err != nil {
		return err
	}
	switch {
	case there && f != nil:
	case !there && len(c.join) == 0 && d.discovery != nil:
		if f, err = d.form(ctx); err != nil {
			return err
		}
	case there || len(c.join) == 0:
		f = &clusterFile{Version: clusterFileVersion, Settings: map[string]string{}}
		for name, value := range c.sharedSettings() {
			f.Settings[name] = *value
		}
		if err := f.write(c.dataDir); err != nil {
			return err
		}
	default:
		if f, err = d.join(ctx); err != nil {
			return err
		}
	}
	d.cluster = f
	if err := discovery.Forget(c.dataDir); err != nil {
		return err
	}
	if f.NodeName != "" && !c.given["node-name"] {
		c.nodeName = f.NodeName
	} else if f.NodeName != c.nodeName {
		f.NodeName = c.nodeName
		if err := f.write(c.dataDir); err != nil {
			return err
		}
	}
	for name, value := range c.sharedSettings() {
		shared, ok := f.Settings[name]
		if !ok {
			continue
		}
		if c.given[name] && *value != shared {
			return fmt.Errorf("--%s: this device's cluster was made with %s, not %s", name, shared, *value)
		}
		*value = shared
	}
	return c.validate()
}

func (d *device) pkiDir() string { return filepath.Join(d.cfg.dataDir, "pki") }

func readClusterFile(dataDir string) (*clusterFile, error) {
	path := filepath.Join(dataDir, clusterFileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	var f clusterFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if f.Version != clusterFileVersion {
		return nil, fmt.Errorf("%s is of version %d, this edged understands %d: use a newer edged", path, f.Version, clusterFileVersion)
	}
	return &f, nil
}

func (f *clusterFile) write(dataDir string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dataDir, clusterFileName), append(data, '\n'), 0o644)
}

// join asks the cluster until it lets this device in. What it got is written
// before the keys are: a cut in between asks again, and is answered the same.
func (d *device) join(ctx context.Context) (*clusterFile, error) {
	c := d.cfg
	if err := d.waitForAddress(ctx); err != nil {
		return nil, err
	}
	d.log.Info("joining", "cluster", strings.Join(c.join, ","), "address", d.nodeIP)
	at := "joining the cluster at " + strings.Join(c.join, ", ")
	d.setPhase(at)
	key, public, err := newDeviceKey()
	if err != nil {
		return nil, err
	}
	answer, err := join.Client{Addrs: c.join, Token: c.parsed.token, Logger: d.log, Waiting: func(err error) { d.setPhase(at + ": " + err.Error()) }}.Join(ctx, join.Request{
		NodeName: c.nodeName, PeerURLs: d.peerURLs(), PublicKey: public,
	})
	if err != nil {
		return nil, err
	}
	f := &clusterFile{Version: clusterFileVersion, Settings: answer.Settings, Members: answer.Members}
	if err := f.write(c.dataDir); err != nil {
		return nil, err
	}
	return f, identity.Install(d.pkiDir(), identity.Shared{CA: answer.CA, CAKey: answer.CAKey, ServiceAccountKey: answer.ServiceAccountKey}, key)
}

// waitForAddress waits until others can reach this device.
func (d *device) waitForAddress(ctx context.Context) error {
	for !d.cfg.parsed.nodeIP.IsValid() && d.nodeIP.IsLoopback() {
		d.log.Info("waiting for an address that the cluster can reach")
		d.setPhase("waiting for an address that the cluster can reach")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(anAddress):
			d.nodeIP = d.lookForNodeIP()
		}
	}
	return nil
}

// lookForNodeIP is --node-ip, or what would be now.
func (d *device) lookForNodeIP() netip.Addr {
	if ip := d.cfg.parsed.nodeIP; ip.IsValid() {
		return ip
	}
	return findNodeIP(d.cfg.parsed.clusterCIDRs[0].Addr().Is6())
}

// peerURLs are where other devices reach this one's store.
func (d *device) peerURLs() []string {
	return []string{"https://" + net.JoinHostPort(d.address().String(), fmt.Sprint(d.cfg.parsed.peer.Port()))}
}

// storeConfig is that of the device's own store.
func (d *device) storeConfig() raftstore.Config {
	cfg := raftstore.Config{
		Dir: filepath.Join(d.cfg.dataDir, "store"), Name: d.cfg.nodeName, Logger: d.log,
		Network: &raftstore.Network{Listener: tls.NewListener(d.ports.peer, d.identity.PeerServerTLS()), Dial: d.dialPeer, Answer: d.clock.Answer,
			Silence: func(s raftstore.Silence) { d.announcer.Missing(s.Silent, s.Back) }, Misses: d.setMisses},
		PeerURLs: d.peerURLs(), Join: len(d.cluster.Members) > 0, Hints: d.joinHints(), Spare: true,
		// An address that nobody else can use must not take the place of one that
		// is only late.
		FollowAddress:       !d.nodeIP.IsLoopback(),
		RefuseWithoutLeader: true,
		HeartbeatTicks:      int(heartbeat / tick), ElectionTicks: int(electionTime / tick / 2), Tick: tick,
	}
	if f := d.cluster.Founding; f != nil {
		cfg.Token = f.Token
		for _, first := range f.Founders {
			name := first.ID.String() // until it tells its own
			if first.ID == d.cluster.Device {
				name = cfg.Name
			}
			cfg.InitialCluster = append(cfg.InitialCluster, raftstore.InitialMember{Name: name, PeerURLs: first.PeerURLs})
		}
	}
	for _, m := range d.cluster.Members {
		name := m.Name
		if slices.Equal(m.PeerURLs, cfg.PeerURLs) {
			name = cfg.Name // it has not told it yet
		}
		cfg.InitialCluster = append(cfg.InitialCluster, raftstore.InitialMember{Name: name, PeerURLs: m.PeerURLs})
	}
	return cfg
}

// joinHints are where --join says that devices are: names among them lead to
// where those have moved.
func (d *device) joinHints() (urls []string) {
	for _, j := range d.cfg.join {
		if host, _, err := net.SplitHostPort(j); err == nil {
			urls = append(urls, "https://"+net.JoinHostPort(host, fmt.Sprint(d.cfg.parsed.peer.Port())))
		}
	}
	return urls
}

func (d *device) dialPeer(ctx context.Context, peer string) (net.Conn, error) {
	u, err := url.Parse(peer)
	if err != nil {
		return nil, err
	}
	return (&tls.Dialer{NetDialer: &net.Dialer{KeepAlive: noProbes}, Config: d.identity.PeerClientTLS()}).DialContext(ctx, "tcp", u.Host)
}

// joinHandler lets devices in.
func (d *device) joinHandler() http.Handler {
	return &join.Server{Check: join.NewTokens(d.registry, d.identity.CA, d.clock.Now).Check, Admit: d.admit, Logger: d.log}
}

// admit makes a device a member, as a learner. A device that asks again gets the
// same answer; one that was wiped takes the place of what it was.
func (d *device) admit(ctx context.Context, req join.Request) (join.Answer, error) {
	if msgs := validation.IsDNS1123Subdomain(req.NodeName); len(msgs) > 0 {
		return join.Answer{}, &join.RequestError{Reason: fmt.Sprintf("--node-name: %q: %s", req.NodeName, strings.Join(msgs, "; "))}
	}
	for _, p := range req.PeerURLs {
		if u, err := url.Parse(p); err != nil || u.Scheme != "https" || u.Port() == "" {
			return join.Answer{}, &join.RequestError{Reason: fmt.Sprintf("the peer address %q is none", p)}
		}
	}
	if sealing, err := d.seals.Sealing(ctx); err != nil {
		return join.Answer{}, err
	} else if sealing && len(req.PublicKey) == 0 {
		return join.Answer{}, &join.RequestError{Reason: "this edged is too old for the cluster: it could not read its Secrets"}
	}
	if err := d.nameIsFree(ctx, req); err != nil {
		return join.Answer{}, err
	}
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return join.Answer{}, err
	}
	members := list.Members
	asked := slices.ContainsFunc(members, func(m *pb.Member) bool { return m.Name == "" && slices.Equal(m.PeerURLs, req.PeerURLs) })
	for _, m := range members {
		if asked || m.Name != req.NodeName && (m.Name == "" || !slices.Equal(m.PeerURLs, req.PeerURLs)) {
			continue
		}
		// A witness has no Node that would tell, and that of a device which is there may
		// not be ready: one that is there answers, unless it is the one that asks.
		elsewhere := slices.Contains(d.witnesses(ctx), m.ID) || !slices.Equal(m.PeerURLs, req.PeerURLs)
		if m.ID == d.store.MemberID() || d.isReady(m.Name) || elsewhere && d.isThere(ctx, m) {
			return join.Answer{}, &join.RequestError{Reason: fmt.Sprintf("a device %q at %s is there already: give this one another --node-name or address", m.Name, strings.Join(m.PeerURLs, ","))}
		}
		d.log.Info("a device that joins takes the place of what it was", "device", m.Name, "member", fmt.Sprintf("%x", m.ID))
		if _, err := d.store.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.ID}); err != nil {
			return join.Answer{}, err
		}
		if err := d.forgetMarks(ctx, m.ID); err != nil {
			return join.Answer{}, err
		}
	}
	if !asked {
		if err := d.claimName(ctx, req); err != nil {
			return join.Answer{}, err
		}
		if _, err := d.store.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: req.PeerURLs, IsLearner: true}); err != nil {
			return join.Answer{}, err
		}
	}
	if list, err = d.store.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}); err != nil {
		return join.Answer{}, err
	}
	if err := d.admitToSecrets(ctx, req, list.Members); err != nil {
		return join.Answer{}, err
	}
	shared, err := d.identity.Share()
	if err != nil {
		return join.Answer{}, err
	}
	answer := join.Answer{CA: shared.CA, CAKey: shared.CAKey, ServiceAccountKey: shared.ServiceAccountKey, Settings: d.cluster.Settings}
	for _, m := range list.Members {
		answer.Members = append(answer.Members, join.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs})
	}
	return answer, nil
}

// isReady says whether the cluster takes a device for there.
func (d *device) isReady(name string) bool {
	n, ok := registry.For[*corev1.Node](d.registry).Get("", name)
	return ok && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
