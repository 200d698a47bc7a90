package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"edged/apiserver"
	"edged/apiserver/admission"
	"edged/apiserver/authn"
	"edged/apiserver/authz"
	"edged/apiserver/crd"
	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/webhook"
	"edged/cluster/join"
)

// ports are the sockets that the device listens on.
type ports struct{ api, kubelet, peer, control, etcd net.Listener }

func listen(c *config) (p ports, err error) {
	if p.api, err = net.Listen("tcp", c.apiListen); err != nil {
		return p, fmt.Errorf("--api-listen: %w", err)
	}
	if c.role != roleWitness {
		if p.kubelet, err = net.Listen("tcp", c.kubeletListen); err != nil {
			return p, errors.Join(fmt.Errorf("--kubelet-listen: %w", err), p.close())
		}
	}
	if c.etcdListen != "" {
		if p.etcd, err = net.Listen("tcp", c.etcdListen); err != nil {
			return p, errors.Join(fmt.Errorf("--etcd-listen: %w", err), p.close())
		}
	}
	quiet := net.ListenConfig{KeepAlive: noProbes}
	if p.peer, err = quiet.Listen(context.Background(), "tcp", c.peerListen); err != nil {
		return p, errors.Join(fmt.Errorf("--peer-listen: %w", err), p.close())
	}
	if p.control, err = listenControl(c.runDir); err != nil {
		return p, errors.Join(err, p.close())
	}
	return p, nil
}

func (p ports) close() error {
	var errs []error
	for _, l := range []net.Listener{p.api, p.kubelet, p.peer, p.control, p.etcd} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// access is who may do what.
type access struct {
	authn  *authn.Authenticator
	authz  *authz.Authorizer
	tokens *authn.Issuer
}

// openAPI puts the API together over the store.
func (d *device) openAPI() (err error) {
	c := d.cfg
	counts := newMetrics()
	if err := d.openSeals(counts.countWrites(registry.FromRaft(d.store))); err != nil {
		return err
	}
	d.registry, err = registry.New(registry.Config{
		Store: d.seals.Wrap(), Logger: d.log, Clock: d.clock.Now,
		Kinds: kinds.All(kinds.Config{ServiceCIDRs: c.parsed.serviceCIDRs, ClusterCIDRs: c.parsed.clusterCIDRs}),
	})
	if err != nil {
		return err
	}
	a := &d.access
	a.tokens, err = authn.NewIssuer(authn.IssuerConfig{
		Issuer: "https://kubernetes.default.svc." + c.clusterDomain, SigningKey: d.identity.ServiceAccountKey(), Objects: d.registry, Now: d.clock.Now,
	})
	if err != nil {
		return err
	}
	if a.authz, err = authz.New(authz.FromRegistry(d.registry)); err != nil {
		return err
	}
	a.authn = authn.New(authn.Config{ClientCAs: d.identity.CAPool(), Issuer: a.tokens, Anonymous: true, Now: d.clock.Now})
	asked := webhook.NewClient(d.registry, nil)
	configured := webhook.New(webhook.Config{Registry: d.registry, Client: asked, Authorizer: a.authz, Logger: d.log})
	d.onClose(asked.Close)
	d.onClose(configured.Close)
	chain, err := admission.New(admission.Config{Registry: d.registry, Escalation: a.authz, Authorizer: a.authz, Configured: configured})
	if err != nil {
		return err
	}
	d.registry.SetAdmission(chain)
	d.registry.SetVirtual(schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}, d.nodeLeases)
	d.kubelets = &http.Transport{TLSClientConfig: d.identity.KubeletClientTLS(), IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 2, TLSHandshakeTimeout: 10 * time.Second}
	d.onClose(func() error { d.kubelets.CloseIdleConnections(); return nil })
	d.openBackups()
	d.custom = crd.New(crd.Config{Registry: d.registry, Converter: webhook.Converter{Client: asked}, Logger: d.log})
	d.api, err = apiserver.New(apiserver.Config{
		Registry: d.registry, Authenticator: a.authn, Authorizer: a.authz, Tokens: a.tokens, Nodes: d, Custom: d.custom, Admission: chain, FrontProxy: d.identity.FrontProxyCertificate,
		Version: apiVersion(), ServerAddress: fmt.Sprintf("%s:%d", d.nodeIP, c.parsed.api.Port()),
		Checks: d.checks(), Leader: d.leaderless, Logger: d.log,
		Metrics: metricsHandler(storeCollector(d.store), counts.requests, counts.writes, backupMetrics{d}), Observe: counts.observe,
	})
	return err
}

func apiVersion() apiversion.Info {
	major, rest, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	before := "0"
	if n, err := strconv.Atoi(minor); err == nil && n > 0 {
		before = strconv.Itoa(n - 1) // what upstream serves for the time of its own upgrade
	}
	return apiversion.Info{
		Major: major, Minor: minor, EmulationMajor: major, EmulationMinor: minor, MinCompatibilityMajor: major, MinCompatibilityMinor: before, GitVersion: kubernetesVersion + "+edged", GitCommit: version, GitTreeState: "clean",
		GoVersion: goruntime.Version(), Compiler: goruntime.Compiler, Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}
}

// checks are what makes the API ready for clients, under upstream's names for the
// same: the store works, this device has loaded it, and what every cluster has is
// there. A store without a quorum works: what it holds is served.
func (d *device) checks() []apiserver.HealthCheck {
	return []apiserver.HealthCheck{
		{Name: "etcd", Live: true, Check: d.store.Err},
		{Name: "informer-sync", Check: func() error {
			if !d.ready.Load() {
				return errors.New("the store is being loaded")
			}
			return nil
		}},
		{Name: "poststarthook/start-system-namespaces-controller", Check: func() error {
			if _, ok := registry.For[*corev1.Namespace](d.registry).Get("", metav1.NamespaceDefault); !ok {
				return errFirstObjects
			}
			return nil
		}},
		{Name: "poststarthook/bootstrap-controller", Check: func() error {
			if _, ok := registry.For[*corev1.Service](d.registry).Get(metav1.NamespaceDefault, "kubernetes"); !ok {
				return errFirstObjects
			}
			return nil
		}},
	}
}

// leaderless tells why nothing is scheduled.
func (d *device) leaderless() error {
	if d.store.Leader() == 0 {
		return errors.New("the cluster has no leader")
	}
	return nil
}

var errFirstObjects = errors.New("the cluster's first objects are being made")

// readiness tells why the API is not ready for clients.
func (d *device) readiness() error {
	for _, c := range d.checks() {
		if err := c.Check(); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the device's servers; each ends with ctx.
func (d *device) serve(ctx context.Context, g *errgroup.Group) {
	mux := http.NewServeMux()
	d.controlHandlers(mux)
	d.control.set(mux)
	g.Go(func() error {
		<-ctx.Done()
		return d.control.stop() // before what its handlers use
	})
	joins, status := d.joinHandler(), d.guard(http.HandlerFunc(d.serveDeviceStatus))
	// No ServeMux: it redirects /api/v1/namespaces//pods, which some clients send for all
	// namespaces, to the namespace "pods".
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case join.Path:
			joins.ServeHTTP(w, r)
		case deviceStatusPath:
			status.ServeHTTP(w, r)
		default:
			d.api.ServeHTTP(w, r)
		}
	})
	d.serveOn(ctx, g, d.ports.api, &http.Server{Handler: api, TLSNextProto: d.alpnHandlers(ctx)}, true)
	if d.ports.kubelet != nil {
		d.serveOn(ctx, g, d.ports.kubelet, &http.Server{Handler: d.withImages(d.guard(d.kubeletPort()))}, true)
	}
	d.serveEtcd(ctx, g)
}

func (d *device) serveOn(ctx context.Context, g *errgroup.Group, l net.Listener, srv *http.Server, secure bool) {
	srv.ReadHeaderTimeout, srv.IdleTimeout = 10*time.Second, 90*time.Second
	srv.ErrorLog = log.New(handshakeErrors{d.log}, "", 0)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	if secure {
		srv.TLSConfig = d.identity.ServerTLS()
		if len(srv.TLSNextProto) > 0 {
			// Beside HTTP/2, which such a table would turn off.
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true)
			srv.Protocols.SetHTTP2(true)
			srv.TLSConfig.NextProtos = slices.AppendSeq(srv.TLSConfig.NextProtos, maps.Keys(srv.TLSNextProto))
		}
	}
	g.Go(func() error {
		var err error
		if secure {
			err = srv.ServeTLS(l, "", "")
		} else {
			err = srv.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	})
	g.Go(func() error {
		<-ctx.Done()
		// Requests get a moment to end; watches end with ctx.
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			return srv.Close()
		}
		return nil
	})
}

// handshakeErrors keeps what strangers cause out of the operator's log.
type handshakeErrors struct{ log *slog.Logger }

func (h handshakeErrors) Write(p []byte) (int, error) {
	h.log.Debug("http: " + strings.TrimSpace(string(p)))
	return len(p), nil
}

// runtimeWait is how long a request waits for the device's runtime, which after a
// restart comes a moment after the API.
const runtimeWait = 10 * time.Second

// nodeHandler is the kubelet API of this device. Until the agent runs there is
// none.
type nodeHandler struct {
	wait time.Duration // how long a request waits until there is one

	mu   sync.Mutex
	h    http.Handler  // guarded by mu
	came chan struct{} // guarded by mu; closed when h is set, nil while nobody waits
}

func (n *nodeHandler) set(h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.h = h
	if n.came != nil {
		close(n.came)
		n.came = nil
	}
}

// get is the handler, and a channel that is closed when there is one.
func (n *nodeHandler) get() (http.Handler, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.h == nil && n.came == nil {
		n.came = make(chan struct{})
	}
	return n.h, n.came
}

func (n *nodeHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, came := n.get()
	if h == nil {
		timeout := time.NewTimer(n.wait)
		defer timeout.Stop()
		select {
		case <-came:
			h, _ = n.get()
		case <-timeout.C:
		case <-r.Context().Done():
		}
	}
	if h == nil {
		http.Error(w, "the device's container runtime is starting", http.StatusServiceUnavailable)
		return
	}
	h.ServeHTTP(w, r)
}

// Handler reaches the kubelet API of a device. It is apiserver's NodeConnector.
func (d *device) Handler(node string) (http.Handler, error) {
	if node == d.cfg.nodeName {
		return &d.node, nil
	}
	host, err := d.kubeletHost(node)
	if err != nil {
		return nil, err
	}
	return &httputil.ReverseProxy{
		Transport: d.kubelets, FlushInterval: -1, ErrorLog: log.New(handshakeErrors{d.log}, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "https", host },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("error dialing backend: %v", err), http.StatusBadGateway)
		},
	}, nil
}

// kubeletHost is where a device serves the kubelet API, as its Node says.
func (d *device) kubeletHost(node string) (string, error) {
	n, ok := registry.For[*corev1.Node](d.registry).Get("", node)
	if !ok {
		return "", fmt.Errorf("there is no node %q", node)
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return net.JoinHostPort(a.Address, fmt.Sprint(n.Status.DaemonEndpoints.KubeletEndpoint.Port)), nil
		}
	}
	return "", fmt.Errorf("node %q has no address", node)
}

// guard lets through who may use the kubelet API: it is authorized as a
// subresource of this Node, as the kubelet's own is.
func (d *device) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, ok, err := d.access.authn.AuthenticateRequest(r)
		if err != nil || !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		subresources := kubeletSubresources(r)
		for _, s := range subresources {
			decision, _, err := d.access.authz.Authorize(r.Context(), kubeletAttributes(r, resp, d.cfg.nodeName, s))
			if err == nil && decision == authorizer.DecisionAllow {
				next.ServeHTTP(w, r)
				return
			}
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", resp.User.GetName(), kubeletVerb(r), subresources), http.StatusForbidden)
	})
}

func kubeletAttributes(r *http.Request, resp *authenticator.Response, node, subresource string) authorizer.Attributes {
	return authorizer.AttributesRecord{
		User: resp.User, Verb: kubeletVerb(r), APIGroup: "", APIVersion: "v1", Resource: "nodes",
		Subresource: subresource, Name: node, ResourceRequest: true, Path: r.URL.Path,
	}
}

func kubeletVerb(r *http.Request) string {
	switch r.Method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get"
}

// kubeletSubresources is upstream's mapping,
// k8s.io/kubernetes/pkg/kubelet/server/auth.go: a right to one of them is enough.
func kubeletSubresources(r *http.Request) []string {
	for path, s := range map[string][]string{
		"/stats": {"stats"}, "/metrics": {"metrics"}, "/logs": {"log"}, "/healthz": {"healthz", "proxy"}, "/pods": {"pods", "proxy"},
		"/runningpods": {"pods", "proxy"}, "/configz": {"configz", "proxy"},
	} {
		if r.URL.Path == path || strings.HasPrefix(r.URL.Path, path+"/") {
			return s
		}
	}
	return []string{"proxy"}
}
