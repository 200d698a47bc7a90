package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"edged/internal/netns"
)

// TestHealthChecks asks as a load balancer outside does.
func TestHealthChecks(t *testing.T) {
	d := newDevice(t, nil)
	t.Cleanup(func() { d.proxier.Close() })
	a, b := d.pod("a"), d.pod("b")
	svc := service("web", "10.43.0.1", "fd43::1")
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	svc.Spec.HealthCheckNodePort = 32100
	ask := func() (code, local int, err error) {
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		err = netns.Do(d.outside.Path, func() error {
			conn, err := d.outside.Dial("tcp", deviceIP+":32100")
			if err != nil {
				return err
			}
			conn.Close()
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
		resp, err := client.Get("http://127.0.0.1:32100/")
		if err != nil {
			return 0, 0, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, 0, err
		}
		var body struct {
			Service        struct{ Namespace, Name string }
			LocalEndpoints int
		}
		if err := json.Unmarshal(data, &body); err != nil {
			return 0, 0, err
		}
		if body.Service.Name != "web" || body.Service.Namespace != "default" || resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(body.LocalEndpoints) {
			t.Errorf("answered %s with %v", data, resp.Header)
		}
		return resp.StatusCode, body.LocalEndpoints, nil
	}
	want := func(step string, code, local int) {
		t.Helper()
		if c, l, err := ask(); err != nil || c != code || l != local {
			t.Errorf("%s: %d with %d endpoints (%v), want %d with %d", step, c, l, err, code, local)
		}
	}
	two := slice(svc, false, a, b)
	d.apply(state(svc, two, slice(svc, true, a, b)))
	want("two Pods of two families", 200, 2)
	elsewhere, no := two.DeepCopy(), false
	there := "there"
	elsewhere.Endpoints[0].NodeName = &there
	d.apply(state(svc, elsewhere))
	want("one of them elsewhere", 200, 1)
	unready := elsewhere.DeepCopy()
	unready.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: &no}
	d.apply(state(svc, unready))
	want("the other one not ready", 503, 0)
	plain := svc.DeepCopy()
	plain.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	plain.Spec.HealthCheckNodePort = 0
	d.apply(state(plain, two))
	if c, _, err := ask(); err == nil {
		t.Errorf("nobody may ask any more: %d", c)
	}
}

// TestWhereInternalTrafficGoes is about the choice among endpoints that are
// here, near, elsewhere and ending.
func TestWhereInternalTrafficGoes(t *testing.T) {
	d := newDevice(t, nil)
	a, b, client := d.pod("a"), d.pod("b"), d.pod("client")
	svc := service("web", "10.43.0.1")
	both := slice(svc, false, a, b)
	there, yes, no := "there", true, false
	both.Endpoints[1].NodeName = &there

	local := svc.DeepCopy()
	policy := corev1.ServiceInternalTrafficPolicyLocal
	local.Spec.InternalTrafficPolicy = &policy
	d.apply(state(local, both))
	wantEven(t, "internalTrafficPolicy Local", count(t, client.NS, "tcp", "10.43.0.1:80", 20), "a")

	hinted := both.DeepCopy()
	hinted.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "cellar"}}}
	hinted.Endpoints[1].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "attic"}}}
	s := state(svc, hinted)
	s.Zone = "attic"
	d.apply(s)
	wantEven(t, "hints for this zone", count(t, client.NS, "tcp", "10.43.0.1:80", 20), "b")
	s.Zone = "garden"
	d.apply(s)
	wantEven(t, "hints for other zones only", count(t, client.NS, "tcp", "10.43.0.1:80", 40), "a", "b")

	ending := both.DeepCopy()
	ending.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	d.apply(state(svc, ending))
	wantEven(t, "one is ending", count(t, client.NS, "tcp", "10.43.0.1:80", 20), "b")
	ending = ending.DeepCopy()
	ending.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}
	d.apply(state(svc, ending))
	wantEven(t, "all are ending, one still serves", count(t, client.NS, "tcp", "10.43.0.1:80", 20), "a")
}
