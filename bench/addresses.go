package main

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/test/harness"
)

const (
	addressMoves = 10
	balancers    = 12 // each of three devices has some of their addresses
	lbPool       = "10.99.0.200/28"
)

// addresses cuts the power of the leader and of another device in turn, and waits until
// the addresses of load balancers that it had are others'.
func (b *bench) addresses() error {
	devices, err := b.cluster(3, "--lb-pool", lbPool)
	if err != nil {
		return err
	}
	for i := range balancers {
		if _, err := devices[0].Client().CoreV1().Services("default").Create(context.Background(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("balanced-", i)},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}, Selector: map[string]string{"app": "bench"}},
		}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	var moved [2][]time.Duration
	for n := range addressMoves {
		if err := held(devices); err != nil {
			return err
		}
		time.Sleep(5 * time.Second) // what the neighbors are told is told
		i, err := leads(devices)
		if err != nil {
			return err
		}
		i = (i + n%2) % 3
		lost, others := devices[i], []*harness.Device{devices[(i+1)%3], devices[(i+2)%3]}
		lost.PowerOff()
		began := time.Now()
		if err := held(others); err != nil {
			return err
		}
		moved[n%2] = append(moved[n%2], time.Since(began))
		log.Printf("%s: its addresses were others' after %v", lost.Name, time.Since(began).Round(10*time.Millisecond))
		lost.Reboot()
		lost.WaitReady()
		if err := allReady(others[0], 3); err != nil {
			return err
		}
	}
	for i, what := range []string{"the leader", "another device"} {
		b.add(fmt.Sprintf("power cut of %s: its load balancers' addresses are others', p50 / worst of %d", what, len(moved[i])), "3 s", "%.1f / %.1f s", median(moved[i]).Seconds(), slices.Max(moved[i]).Seconds())
	}
	return nil
}

// held waits until all balancers' addresses are on devices.
func held(devices []*harness.Device) error {
	have := map[string]bool{}
	pool := netip.MustParsePrefix(lbPool)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		clear(have)
		for _, d := range devices {
			out, err := d.Run("ip", "-4", "-o", "addr", "show", "dev", "eth0")
			if err != nil {
				return err
			}
			for _, f := range strings.Fields(out) {
				if p, err := netip.ParsePrefix(f); err == nil && p.IsSingleIP() && pool.Contains(p.Addr()) {
					have[f] = true
				}
			}
		}
		if len(have) == balancers {
			return nil
		}
	}
	return fmt.Errorf("%d of %d addresses are held after a minute", len(have), balancers)
}
