package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Kind tells the three probes apart.
type Kind string

// The kinds, in the words of events.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Result is the outcome of a probe that passed a threshold.
type Result struct {
	Kind Kind
	OK   bool
}

// Exec runs a command in the container and returns its exit code and output.
type Exec func(ctx context.Context, command []string) (exitCode int, output string, err error)

// Target is what is probed.
type Target struct {
	Container *corev1.Container
	// Host is the Pod's address.
	Host string
	Exec Exec
	// StartedAt is when the container began to run.
	StartedAt time.Time
	// Resumed says that the container runs since before this daemon: its probes
	// begin as if they had passed.
	Resumed bool
}

// A container that is not ready right after its start is asked again between
// firstRetry and lastRetry later, whatever its period: it starts to listen in a moment.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Second
)

// Set runs the probes of one container.
type Set struct {
	target Target
	report func(Result)
	fail   func(kind Kind, how string)
	cancel context.CancelFunc // of all
	ending context.CancelFunc // of those that would have the container restarted
	wg     sync.WaitGroup
}

// Start starts the container's probes. report is called with each change of an
// outcome, fail with each probe that failed, or could not be made, and how; both from
// the probes' goroutines.
// Liveness and readiness wait until a startup probe has succeeded.
func Start(t Target, report func(Result), fail func(Kind, string)) *Set {
	ctx, cancel := context.WithCancel(context.Background())
	living, ending := context.WithCancel(ctx)
	s := &Set{target: t, report: report, fail: fail, cancel: cancel, ending: ending}
	started := make(chan struct{})
	c := t.Container
	if c.StartupProbe == nil || t.Resumed {
		close(started)
	} else {
		var once sync.Once
		s.run(living, Startup, c.StartupProbe, nil, func(ok bool) {
			if ok {
				once.Do(func() { close(started) })
			}
		})
	}
	if c.LivenessProbe != nil {
		s.run(living, Liveness, c.LivenessProbe, started, func(bool) {})
	}
	if c.ReadinessProbe != nil {
		s.run(ctx, Readiness, c.ReadinessProbe, started, func(bool) {})
	}
	return s
}

// Ending says that the container is being stopped: whether it still is ready
// goes on to be probed, as it may serve until it has ended; whether to restart
// it no longer matters.
func (s *Set) Ending() { s.ending() }

// Stop ends the probes and waits for one that is under way.
func (s *Set) Stop() {
	s.cancel()
	s.wg.Wait()
}

// run starts one probe. After a startup probe has succeeded it has done its
// work and ends.
func (s *Set) run(ctx context.Context, kind Kind, p *corev1.Probe, after <-chan struct{}, changed func(bool)) {
	s.wg.Go(func() {
		if after != nil {
			select {
			case <-ctx.Done():
				return
			case <-after:
			}
		}
		period := time.Duration(p.PeriodSeconds) * time.Second
		if p.PeriodSeconds <= 0 {
			period = 10 * time.Second // the API's default
		}
		wait := time.Until(s.target.StartedAt.Add(time.Duration(p.InitialDelaySeconds) * time.Second))
		if s.target.Resumed {
			// Spread the probes of all containers that a restarted daemon finds.
			wait = rand.N(period)
		}
		state := outcome{known: s.target.Resumed, now: s.target.Resumed}
		early := firstRetry
		for sleep(ctx, max(wait, 0)) {
			begin := time.Now()
			ok, output, err := s.once(ctx, p)
			if ctx.Err() != nil {
				return
			}
			ok = ok && err == nil
			if !ok && kind == Readiness && !state.known && early < min(period, lastRetry) {
				wait, early = early, 2*early
				continue
			}
			switch {
			case err != nil:
				s.fail(kind, "errored and resulted in unknown state: "+err.Error())
			case !ok:
				s.fail(kind, "failed: "+output)
			}
			// One that could not be made says nothing about the container.
			if err == nil && state.add(ok, threshold(p, ok)) {
				changed(ok)
				s.report(Result{kind, ok})
				if kind == Startup {
					return
				}
			}
			wait = period - time.Since(begin)
		}
	})
}

// outcome is what a probe's results in a row amount to.
type outcome struct {
	known, now bool // the outcome, if there is one yet
	last       bool // the last result
	run        int  // how many like it in a row
}

// add takes in one more result and tells whether the outcome changed.
func (o *outcome) add(ok bool, threshold int) bool {
	if o.run > 0 && o.last == ok {
		o.run++
	} else {
		o.last, o.run = ok, 1
	}
	if o.run < threshold || o.known && o.now == ok {
		return false
	}
	o.known, o.now = true, ok
	return true
}

func threshold(p *corev1.Probe, ok bool) int {
	if ok {
		return max(int(p.SuccessThreshold), 1)
	}
	if p.FailureThreshold == 0 {
		return 3
	}
	return int(p.FailureThreshold)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// once probes once, within the probe's timeout.
func (s *Set) once(ctx context.Context, p *corev1.Probe) (ok bool, output string, err error) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.Exec != nil:
		code, out, err := s.target.Exec(ctx, p.Exec.Command)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return false, fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(p.Exec.Command, " "), timeout), nil
		}
		return err == nil && code == 0, out, err
	case p.HTTPGet != nil:
		return HTTPGet(ctx, p.HTTPGet, s.target.Container, s.target.Host)
	case p.TCPSocket != nil:
		return s.tcp(ctx, p.TCPSocket)
	case p.GRPC != nil:
		return s.grpc(ctx, p.GRPC, timeout)
	}
	return false, "", errors.New("missing probe handler")
}

// Port resolves a port that may be a name of one of the container's.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String {
		port = 0
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				port = int(cp.ContainerPort)
			}
		}
		if n, err := strconv.Atoi(p.StrVal); port == 0 && err == nil {
			port = n
		}
	}
	if port <= 0 || port > 65535 {
		return 0, fmt.Errorf("invalid port number: %s", p.String())
	}
	return port, nil
}

// maxBody bounds what is read of an answer: it is shown in an event.
const maxBody = 10 << 10

// HTTPGet asks a container as a probe or a lifecycle hook does. Certificates are
// not verified, and redirects to other hosts count as success, as in the
// kubelet.
func HTTPGet(ctx context.Context, get *corev1.HTTPGetAction, c *corev1.Container, host string) (bool, string, error) {
	port, err := Port(get.Port, c)
	if err != nil {
		return false, "", err
	}
	if get.Host != "" {
		host = get.Host
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = strings.ToLower(string(get.Scheme)), net.JoinHostPort(host, strconv.Itoa(port))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, "", err
	}
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		} else {
			req.Header.Add(h.Name, h.Value)
		}
	}
	// What the Pod gives takes the place of these; an empty one has them left out.
	for name, value := range map[string]string{"User-Agent": "kube-probe/1.37", "Accept": "*/*"} {
		switch given, ok := req.Header[name]; {
		case !ok:
			req.Header.Set(name, value)
		case given[0] == "" && name == "Accept":
			req.Header.Del(name)
		}
	}
	req.Header.Set("Connection", "close")
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Proxy: nil},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return false, err.Error(), nil
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return true, string(body), nil
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

func (s *Set) tcp(ctx context.Context, t *corev1.TCPSocketAction) (bool, string, error) {
	port, err := Port(t.Port, s.target.Container)
	if err != nil {
		return false, "", err
	}
	host := s.target.Host
	if t.Host != "" {
		host = t.Host
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false, err.Error(), nil
	}
	return true, "", conn.Close()
}

func (s *Set) grpc(ctx context.Context, g *corev1.GRPCAction, timeout time.Duration) (bool, string, error) {
	addr := net.JoinHostPort(s.target.Host, strconv.Itoa(int(g.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1.37"))
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return false, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", err), nil
		case codes.DeadlineExceeded:
			return false, fmt.Sprintf("timeout: failed to connect service %q within %v: %s", addr, timeout, err), nil
		}
		return false, fmt.Sprintf("error: health rpc failed: %s", err), nil
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", resp.Status), nil
	}
	return true, "service healthy", nil
}

// Output makes what a command printed fit into an event.
func Output(out, errOut *bytes.Buffer) string {
	s := out.String() + errOut.String()
	if len(s) > maxBody {
		s = s[:maxBody]
	}
	return s
}
