package mesh_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/internal/netns/netnstest"
	"edged/net/mesh"
)

func node(name, podCIDR, ip string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}, {Type: corev1.NodeHostName, Address: name}}},
	}
}

// TestRun follows Nodes that come, move and go, and links that the device loses
// and gets back.
func TestRun(t *testing.T) {
	reg := registrytest.New(t)
	nodes := registry.For[*corev1.Node](reg)
	create := func(n *corev1.Node) {
		t.Helper()
		if _, err := nodes.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	create(node("a", "10.42.1.0/24", "10.9.0.1"))
	ns := netnstest.New(t)
	ns.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
	link := func() {
		ns.Run(t, "ip", "addr", "replace", "10.9.0.1/24", "dev", "eth0")
		ns.Run(t, "ip", "link", "set", "far", "up")
		ns.Run(t, "ip", "link", "set", "eth0", "up")
	}
	link()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go ns.Do(t, func() error {
		m, err := mesh.New(mesh.Config{Self: peer("a", "10.42.1.0/24")})
		if err != nil {
			ended <- err
			return err
		}
		defer m.Close()
		ended <- m.Run(ctx, reg)
		return nil
	})
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	want := func(step string, routes ...string) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			got = ns.Run(t, "ip", "route", "show", "proto", "238", "type", "unicast")
			ok := strings.Count(got, "\n") == len(routes)
			for _, r := range routes {
				ok = ok && strings.Contains(got, r)
			}
			if ok {
				return
			}
		}
		t.Fatalf("%s: have\n%swant %q", step, got, routes)
	}
	create(node("b", "10.42.2.0/24", "10.9.0.2"))
	want("a peer comes", "10.42.2.0/24 via 10.9.0.2 dev eth0")
	create(node("c", "10.42.3.0/24", "10.9.0.3"))
	want("another", "10.42.2.0/24 via 10.9.0.2 dev eth0", "10.42.3.0/24 via 10.9.0.3 dev eth0")
	if _, err := nodes.UpdateStatus(t.Context(), "", "b", func(n *corev1.Node) error {
		n.Status.Addresses[0].Address = "10.9.0.22"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want("it gets another address", "10.42.2.0/24 via 10.9.0.22 dev eth0", "10.42.3.0/24 via 10.9.0.3 dev eth0")
	if err := nodes.Delete(t.Context(), "", "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	want("one goes", "10.42.2.0/24 via 10.9.0.22 dev eth0")
	ns.Run(t, "ip", "link", "set", "eth0", "down")
	want("the link goes")
	link()
	want("the link comes back", "10.42.2.0/24 via 10.9.0.22 dev eth0")
	ns.Run(t, "ip", "route", "del", "10.42.2.0/24")
	want("somebody removes a route", "10.42.2.0/24 via 10.9.0.22 dev eth0")
	for i := range 20 {
		create(node(fmt.Sprintf("n%d", i), fmt.Sprintf("10.42.%d.0/24", 100+i), fmt.Sprintf("10.9.0.%d", 100+i)))
	}
	var all []string
	for i := range 20 {
		all = append(all, fmt.Sprintf("10.42.%d.0/24 via 10.9.0.%d dev eth0", 100+i, 100+i))
	}
	want("many come", append(all, "10.42.2.0/24 via 10.9.0.22 dev eth0")...)
}

// TestNodeWithoutAddress: of a Node that was made a moment ago nothing is said; of one
// whose address leads nowhere, it is.
func TestNodeWithoutAddress(t *testing.T) {
	var log bytes.Buffer
	netnstest.New(t).Do(t, func() error {
		m, err := mesh.New(mesh.Config{Self: peer("a", "10.42.1.0/24"), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			return err
		}
		defer m.Close()
		if _, err := m.Apply(t.Context(), []mesh.Peer{peer("b", "10.42.2.0/24")}); err != nil {
			return err
		}
		if log.Len() > 0 {
			t.Errorf("of a new Node: %s", log.String())
		}
		_, err = m.Apply(t.Context(), []mesh.Peer{peer("b", "10.42.2.0/24", "192.0.2.9")})
		return err
	})
	if !strings.Contains(log.String(), "the Pods of a device are not reached") {
		t.Errorf("of one without a route: %s", log.String())
	}
}
