package mesh

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/internal/linknews"
)

const (
	// restBetween bounds the work of a burst of changes.
	restBetween = 50 * time.Millisecond
	// checkEvery is how long it stays unnoticed that a stranger removed what
	// the kernel sends no notice of.
	checkEvery = time.Minute
	// retryAfter an error.
	retryAfter = 5 * time.Second
)

// Run keeps the mesh in step with the cluster's Nodes until ctx ends. What is in
// the kernel stays when it returns.
func (m *Mesh) Run(ctx context.Context, reg *registry.Registry) error {
	if err := reg.WaitReady(ctx); err != nil {
		return err
	}
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default: // one is pending already
		}
	}
	notices, err := linknews.Open(noticeGroups)
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		linknews.Watch(notices, matters, poke)
	}()
	defer func() {
		notices.Close() // ends the reader
		<-read
	}()
	nodes := registry.For[*corev1.Node](reg)
	defer nodes.Subscribe(func(e registry.Event[*corev1.Node]) {
		if e.Type == watch.Deleted || e.Old == nil || !equalPeer(peerOf(e.Old), peerOf(e.Object)) {
			poke()
		}
	})()
	poke() // the first time without any event
	m.loop(ctx, wake, func() []Peer {
		var peers []Peer
		for _, n := range nodes.List("") {
			peers = append(peers, peerOf(n))
		}
		return peers
	})
	return nil
}

func (m *Mesh) loop(ctx context.Context, wake <-chan struct{}, read func() []Peer) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
		case <-retry:
		case <-wake:
		}
		failing := retry != nil
		retry = nil
		if _, err := m.Apply(ctx, read()); err != nil && ctx.Err() == nil {
			if !failing { // once, however often it is tried
				m.log.Error("the ways to other devices are not all there; trying again", "every", retryAfter, "err", err)
			}
			retry = time.After(retryAfter)
		} else if failing {
			m.log.Info("the ways to other devices are all there again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(restBetween):
		}
	}
}

// peerOf reads a Node. What cannot be parsed is left out: a Node that nobody
// has completed yet is a peer without a way.
func peerOf(n *corev1.Node) Peer {
	p := Peer{Name: n.Name}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		if c, err := netip.ParsePrefix(s); err == nil {
			p.PodCIDRs = append(p.PodCIDRs, c.Masked())
		}
	}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			p.Addrs = append(p.Addrs, ip)
		}
	}
	return p
}

func equalPeer(a, b Peer) bool {
	return a.Name == b.Name && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs)
}

// noticeGroups are what the kernel sends notices of. An address that comes or goes
// is a local route that does; notices of addresses would also come whenever the
// lifetime of one is renewed.
const noticeGroups = linknews.Links | linknews.Routes

// matters says whether a notice may be about a way to another device. Pods' own
// links come and go all day and are not.
func matters(notice []byte) bool {
	kind, body, ok := linknews.Split(notice)
	switch kind {
	case unix.RTM_NEWROUTE:
		const protocol = 5 // in struct rtmsg
		return len(body) > protocol && body[protocol] != byte(routeProtocol)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		name, ok := linknews.LinkName(body)
		return ok && !slices.ContainsFunc(nobodysLinks, func(p string) bool { return bytes.HasPrefix(name, []byte(p)) })
	}
	return ok
}

// nobodysLinks begin the names of links that lead to no other device.
var nobodysLinks = []string{"edv", "edged-vx", "veth", "lo\x00"}
