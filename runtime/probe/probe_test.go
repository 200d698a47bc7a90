package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func execProbe(period, failures, successes int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
		PeriodSeconds: period, FailureThreshold: failures, SuccessThreshold: successes, TimeoutSeconds: 1,
	}
}

// TestThresholds walks a container through its life on virtual time: dead probes
// wait for the startup probe, and each outcome counts only after its threshold.
func TestThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var healthy atomic.Bool
		begin := time.Now()
		var log []string
		note := func(what string) { log = append(log, fmt.Sprintf("%ds %s", int(time.Since(begin).Seconds()), what)) }
		results := make(chan string, 100)
		s := Start(Target{
			Container: &corev1.Container{
				StartupProbe:   execProbe(1, 30, 1),
				LivenessProbe:  execProbe(2, 3, 1),
				ReadinessProbe: execProbe(1, 2, 2),
			},
			StartedAt: begin,
			Exec: func(context.Context, []string) (int, string, error) {
				if healthy.Load() {
					return 0, "", nil
				}
				return 1, "sick", nil
			},
		}, func(r Result) { results <- fmt.Sprintf("%s %v", r.Kind, r.OK) }, func(Kind, string) {})
		wait := func() { note(<-results) }
		time.Sleep(4500 * time.Millisecond)
		healthy.Store(true)
		wait() // startup
		wait() // liveness: its first success
		wait() // readiness after two
		time.Sleep(4500*time.Millisecond - time.Since(begin)%time.Second)
		healthy.Store(false)
		wait()
		wait()
		s.Stop()
		if got := log[0]; got != "5s Startup true" {
			t.Errorf("first: %s", got)
		}
		seen := map[string]int{}
		for _, l := range log {
			var at int
			var what, ok string
			fmt.Sscanf(l, "%ds %s %s", &at, &what, &ok)
			seen[what+" "+ok] = at
		}
		if seen["Readiness true"] < 6 || seen["Readiness false"] <= seen["Readiness true"] || seen["Liveness false"] <= seen["Readiness false"] {
			t.Errorf("%v", log)
		}
	})
}

func TestHandlers(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ok" && r.Header.Get("X-Want") == "yes" && r.URL.RawQuery == "a=b" {
			return
		}
		w.WriteHeader(http.StatusTeapot)
	}))
	defer srv.Close()
	host, portText, _ := net.SplitHostPort(srv.Listener.Addr().String())
	port, _ := strconv.Atoi(portText)
	c := &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
	s := &Set{target: Target{Container: c, Host: host}}
	named := intstr.FromString("web")
	for name, tc := range map[string]struct {
		p    corev1.ProbeHandler
		want bool
	}{
		"http":        {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok?a=b", Port: named, HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Want", Value: "yes"}}}}, true},
		"http teapot": {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: named}}, false},
		"no port":     {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("nope")}}, false},
		"tcp":         {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(port))}}, true},
		"tcp closed":  {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}}, false},
		"grpc":        {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port)}}, false},
	} {
		ok, out, err := s.once(context.Background(), &corev1.Probe{ProbeHandler: tc.p})
		if ok != tc.want {
			t.Errorf("%s: %v %q %v", name, ok, out, err)
		}
	}
}

// TestHeaders: what a Pod gives takes the place of what a probe has of its own.
func TestHeaders(t *testing.T) {
	var got http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		if r.URL.Path == "/round" {
			http.Redirect(w, r, "/round", http.StatusFound)
		}
	}))
	defer srv.Close()
	host, portText, _ := net.SplitHostPort(srv.Listener.Addr().String())
	get := func(path string, headers ...corev1.HTTPHeader) bool {
		ok, _, err := HTTPGet(t.Context(), &corev1.HTTPGetAction{Path: path, Port: intstr.Parse(portText), HTTPHeaders: headers}, &corev1.Container{}, host)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
	for _, tt := range []struct {
		given         []corev1.HTTPHeader
		agent, accept string
	}{
		{nil, "[kube-probe/1.37]", "[*/*]"},
		{[]corev1.HTTPHeader{{Name: "user-agent", Value: "own"}, {Name: "Accept", Value: "text/plain"}}, "[own]", "[text/plain]"},
		{[]corev1.HTTPHeader{{Name: "User-Agent"}, {Name: "Accept"}}, "[]", "[]"},
	} {
		if !get("/", tt.given...) {
			t.Errorf("%v: failed", tt.given)
		}
		if agent, accept := fmt.Sprint(got["User-Agent"]), fmt.Sprint(got["Accept"]); agent != tt.agent || accept != tt.accept || got["Accept-Encoding"] != nil {
			t.Errorf("%v: %v", tt.given, got)
		}
	}
	if get("/round") {
		t.Error("a circle of redirects is taken for health")
	}
}

// TestErrors: a probe that could not be made is told and counts for nothing.
func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		var failed, results atomic.Int64
		s := Start(Target{
			Container: &corev1.Container{LivenessProbe: execProbe(1, 1, 1), ReadinessProbe: execProbe(1, 1, 1)},
			StartedAt: time.Now(),
			Exec: func(context.Context, []string) (int, string, error) {
				if broken.Load() {
					return 0, "", errors.New("no shim")
				}
				return 0, "", nil
			},
		}, func(Result) { results.Add(1) }, func(Kind, string) { failed.Add(1) })
		time.Sleep(5500 * time.Millisecond)
		broken.Store(true)
		time.Sleep(5 * time.Second)
		s.Stop()
		if results.Load() != 2 || failed.Load() != 10 {
			t.Errorf("%d results, %d told", results.Load(), failed.Load())
		}
	})
}

// TestOutcome: only results in a row count, from the first one on.
func TestOutcome(t *testing.T) {
	const successes, failures = 3, 2
	for name, tc := range map[string]struct {
		resumed      bool
		results, out string // + and - ; what each changed the outcome to, or .
	}{
		"mixed from the beginning": {false, "-+-++-+++", "........+"},
		"failure known at once":    {false, "--", ".-"},
		"stays":                    {false, "++++++", "..+..."},
		"down and up":              {false, "+++-+--+++", "..+...-..+"},
		"resumed as passed":        {true, "+++-+--", "......-"},
	} {
		o := outcome{known: tc.resumed, now: tc.resumed}
		got := ""
		for _, r := range tc.results {
			threshold := failures
			if r == '+' {
				threshold = successes
			}
			if o.add(r == '+', threshold) {
				got += string(r)
			} else {
				got += "."
			}
		}
		if got != tc.out {
			t.Errorf("%s: %s, not %s", name, got, tc.out)
		}
	}
}

// TestEnding: a container that is being stopped is probed for readiness only.
func TestEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var live, ready atomic.Int32
		p := func(what string) *corev1.Probe {
			pr := execProbe(1, 1, 1)
			pr.Exec.Command = []string{what}
			return pr
		}
		s := Start(Target{
			Container: &corev1.Container{LivenessProbe: p("live"), ReadinessProbe: p("ready")}, StartedAt: time.Now(),
			Exec: func(_ context.Context, c []string) (int, string, error) {
				if c[0] == "live" {
					live.Add(1)
				} else {
					ready.Add(1)
				}
				return 0, "", nil
			},
		}, func(Result) {}, func(Kind, string) {})
		time.Sleep(2500 * time.Millisecond)
		s.Ending()
		synctest.Wait()
		was, wasReady := live.Load(), ready.Load()
		time.Sleep(2 * time.Second)
		if live.Load() != was || ready.Load() != wasReady+2 || was == 0 {
			t.Errorf("liveness %d to %d, readiness %d to %d", was, live.Load(), wasReady, ready.Load())
		}
		s.Stop()
	})
}
