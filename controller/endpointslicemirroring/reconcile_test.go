package endpointslicemirroring_test

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"edged/controller/endpointslicemirroring"
)

func addresses(ips ...string) (out []corev1.EndpointAddress) {
	for _, ip := range ips {
		out = append(out, corev1.EndpointAddress{IP: ip})
	}
	return out
}

func ports(ns ...int32) (out []corev1.EndpointPort) {
	for _, n := range ns {
		out = append(out, corev1.EndpointPort{Name: fmt.Sprint("p", n), Port: n, Protocol: corev1.ProtocolTCP})
	}
	return out
}

// describe tells of slices in one line each.
func describe(list []*discoveryv1.EndpointSlice) string {
	var lines []string
	for _, s := range list {
		line := string(s.AddressType) + " "
		for _, p := range s.Ports {
			line += fmt.Sprint(*p.Port, ",")
		}
		for _, e := range s.Endpoints {
			line += " " + e.Addresses[0]
			if !*e.Conditions.Ready {
				line += "!"
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name    string
		subsets []corev1.EndpointSubset
		want    string
		skipped int
	}{
		{name: "nothing"},
		{name: "not ready", want: "IPv4 80, 10.0.0.1 10.0.0.2!",
			subsets: []corev1.EndpointSubset{{Ports: ports(80), Addresses: addresses("10.0.0.1"), NotReadyAddresses: addresses("10.0.0.2")}}},
		{name: "both families", want: "IPv4 80, 10.0.0.1; IPv6 80, fd00::1",
			subsets: []corev1.EndpointSubset{{Ports: ports(80), Addresses: addresses("fd00:0::1", "10.0.0.1")}}},
		{name: "two subsets with the same addresses are one slice", want: "IPv4 80,90, 10.0.0.1",
			subsets: []corev1.EndpointSubset{{Ports: ports(90), Addresses: addresses("10.0.0.1")}, {Ports: ports(80), Addresses: addresses("10.0.0.1")}}},
		{name: "two subsets with the same port are one slice; not ready anywhere is not ready", want: "IPv4 80, 10.0.0.1 10.0.0.2!",
			subsets: []corev1.EndpointSubset{{Ports: ports(80), Addresses: addresses("10.0.0.1", "10.0.0.2")}, {Ports: ports(80), NotReadyAddresses: addresses("10.0.0.2")}}},
		{name: "different ports", want: "IPv4 80, 10.0.0.1; IPv4 90, 10.0.0.2",
			subsets: []corev1.EndpointSubset{{Ports: ports(90), Addresses: addresses("10.0.0.2")}, {Ports: ports(80), Addresses: addresses("10.0.0.1")}}},
		{name: "no ports", want: "IPv4  10.0.0.1", subsets: []corev1.EndpointSubset{{Addresses: addresses("10.0.0.1")}}},
	} {
		e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns", UID: "1"}, Subsets: c.subsets}
		change, skipped := endpointslicemirroring.Reconcile(e, nil)
		if got := describe(change.Create); got != c.want || skipped != c.skipped {
			t.Errorf("%s: %q, %d skipped; want %q, %d", c.name, got, skipped, c.want, c.skipped)
		}
		// What was made is what is wanted.
		if again, _ := endpointslicemirroring.Reconcile(e, change.Create); len(again.Create)+len(again.Update)+len(again.Delete) != 0 {
			t.Errorf("%s: a second round writes %+v", c.name, again)
		}
	}
}

func TestReconcileMetadata(t *testing.T) {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Name: "db", Namespace: "ns", UID: "1", Labels: map[string]string{"a": "b", discoveryv1.LabelManagedBy: "me"},
		Annotations: map[string]string{"c": "d", corev1.LastAppliedConfigAnnotation: "{}"},
	}, Subsets: []corev1.EndpointSubset{{Ports: ports(80), Addresses: []corev1.EndpointAddress{{IP: "10.0.0.1", Hostname: "h", NodeName: ptr.To("n")}}}}}
	change, _ := endpointslicemirroring.Reconcile(e, nil)
	s := change.Create[0]
	if s.Labels["a"] != "b" || s.Labels[discoveryv1.LabelManagedBy] != endpointslicemirroring.Manager || s.Labels[discoveryv1.LabelServiceName] != "db" ||
		len(s.Annotations) != 1 || s.Annotations["c"] != "d" || !metav1.IsControlledBy(s, e) || s.GenerateName != "db-" {
		t.Errorf("made %+v", s.ObjectMeta)
	}
	if ep := s.Endpoints[0]; *ep.Hostname != "h" || *ep.NodeName != "n" {
		t.Errorf("endpoint %+v", ep)
	}

	s.Name = "db-1"
	e.Labels["a"] = "other"
	e.Subsets[0].Addresses = addresses("10.0.0.2")
	change, _ = endpointslicemirroring.Reconcile(e, []*discoveryv1.EndpointSlice{s})
	if len(change.Create)+len(change.Delete) != 0 || describe(change.Update) != "IPv4 80, 10.0.0.2" || change.Update[0].Labels["a"] != "other" {
		t.Errorf("an update writes %+v", change)
	}

	e.UID = "2" // deleted and made again
	change, _ = endpointslicemirroring.Reconcile(e, []*discoveryv1.EndpointSlice{s})
	if len(change.Create) != 1 || len(change.Delete) != 1 {
		t.Errorf("Endpoints that were made again: %+v", change)
	}

	e.Subsets = nil
	for i := range 3 {
		s := corev1.EndpointSubset{Ports: ports(80)}
		for j := range 400 {
			s.Addresses = append(s.Addresses, corev1.EndpointAddress{IP: fmt.Sprintf("10.%d.%d.%d", i, j/100, j%100+1)})
		}
		e.Subsets = append(e.Subsets, s)
	}
	change, skipped := endpointslicemirroring.Reconcile(e, nil)
	if len(change.Create) != 1 || len(change.Create[0].Endpoints) != endpointslicemirroring.MaxPerSubset || skipped != 200 {
		t.Errorf("1200 addresses: %d slices, %d skipped", len(change.Create), skipped)
	}
}
