package imageshare

import (
	"context"
	"crypto/tls"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
	"edged/runtime/engine"
)

const (
	dialTimeout = 3 * time.Second
	// answerTimeout bounds the wait for a device's first byte.
	answerTimeout = 5 * time.Second
	// askTimeout bounds asking all devices for an image.
	askTimeout = 3 * time.Second
	// lookAgain is how often who waits for a device looks whether it is ready.
	lookAgain = 2 * time.Second
)

// Store is the device's content store.
type Store interface {
	Target(ctx context.Context, ref string) (b engine.Blob, imported, ok bool, err error)
	OpenContent(ctx context.Context, digest string) (engine.Content, error)
}

// Config of a Share.
type Config struct {
	NodeName string
	Registry *registry.Registry
	Store    Store
	// TLS connects to devices as this device and takes no other for one.
	TLS *tls.Config
	// Device tells the name of the device that makes a request, "" if it is none.
	Device func(*http.Request) string
	Logger *slog.Logger
}

// Share is a device's part in sharing images.
type Share struct {
	cfg    Config
	nodes  registry.Client[*corev1.Node]
	client *http.Client
	claims *claims
}

// New makes a Share. Close it when no pull is under way.
func New(cfg Config) *Share {
	s := &Share{cfg: cfg, nodes: registry.For[*corev1.Node](cfg.Registry)}
	s.claims = newClaims(s.alive)
	t := cfg.TLS.Clone()
	t.NextProtos = []string{"http/1.1"} // a claim is a connection
	s.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: t, TLSHandshakeTimeout: answerTimeout, ResponseHeaderTimeout: answerTimeout,
		DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3,
		}}).DialContext,
		IdleConnTimeout: 10 * time.Second, MaxIdleConnsPerHost: 4, DisableCompression: true,
	}}
	return s
}

// Close ends the connections that are idle.
func (s *Share) Close() { s.client.CloseIdleConnections() }

// peer is another device.
type peer struct{ name, addr string }

// alive says whether the cluster takes a device for there.
func (s *Share) alive(name string) bool {
	n, ok := s.nodes.Get("", name)
	return ok && ready(n)
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// address is where a Node's kubelet API, and with it its Share, is.
func address(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			return net.JoinHostPort(ip.String(), strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)))
		}
	}
	return ""
}

// peers are the other devices that are ready and could use the same images, those
// first whose status names one of refs.
func (s *Share) peers(refs ...string) (out []peer, naming int) {
	own, ok := s.nodes.Get("", s.cfg.NodeName)
	if !ok {
		return nil, 0
	}
	var rest []peer
	for _, n := range s.nodes.List("") {
		addr := address(n)
		if n.Name == s.cfg.NodeName || addr == "" || !ready(n) ||
			n.Status.NodeInfo.Architecture != own.Status.NodeInfo.Architecture || n.Status.NodeInfo.OperatingSystem != own.Status.NodeInfo.OperatingSystem {
			continue
		}
		if names(n, refs) {
			out = append(out, peer{n.Name, addr})
		} else {
			rest = append(rest, peer{n.Name, addr})
		}
	}
	// Not all ask the same one.
	for _, list := range [][]peer{out, rest} {
		slices.SortFunc(list, func(a, b peer) int { return rank(s.cfg.NodeName, a.name, b.name) })
	}
	return append(out, rest...), len(out)
}

func names(n *corev1.Node, refs []string) bool {
	for _, im := range n.Status.Images {
		if slices.ContainsFunc(im.Names, func(name string) bool { return slices.Contains(refs, name) }) {
			return true
		}
	}
	return false
}

// rank orders two names by their hashes with a key: every key has an order of its
// own, which is the same wherever it is computed.
func rank(key, a, b string) int {
	ha, hb := weight(key, a), weight(key, b)
	switch {
	case ha < hb:
		return -1
	case ha > hb:
		return 1
	}
	return strings.Compare(a, b)
}

func weight(key, name string) uint64 {
	h := fnv.New64a()
	io.WriteString(h, name)
	h.Write([]byte{0})
	io.WriteString(h, key)
	return h.Sum64()
}

// Copies names the other devices that have an image, by its digest, right now.
func (s *Share) Copies(ctx context.Context, name, digest string) []string {
	peers, _ := s.peers()
	var out []string
	for _, p := range s.ask(ctx, peers, manifestPath(name, digest)) {
		out = append(out, p.peer.name)
	}
	slices.Sort(out)
	return out
}
