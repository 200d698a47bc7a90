package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"edged/apiserver/registry"
)

const (
	// serviceCheck is how often the leader looks whether those who serve a group
	// version do; an answer of theirs that is as old is asked for again.
	serviceCheck = 20 * time.Second
	// serviceTimeout is upstream's for discovery.
	serviceTimeout = 5 * time.Second
	maxDiscovery   = 4 << 20
)

// aggregator passes requests on for group versions that an APIService says
// others serve. What this server has itself it serves itself.
type aggregator struct {
	*Server
	services registry.Client[*apiregistrationv1.APIService]
	own      map[string]ownService // by name, as APIServices have them

	mu       sync.Mutex // guards what follows
	backends map[string]*backend
}

// backend is the way to one APIService's server, and what it was last found to
// serve.
type backend struct {
	spec      apiregistrationv1.APIServiceSpec
	transport interface {
		http.RoundTripper
		CloseIdleConnections()
	}

	mu      sync.Mutex // guards what follows
	asked   time.Time
	found   *metav1.APIResourceList // nil: it never answered
	current bool
	// described is the hash of its OpenAPI document of version 3, when that was
	// last asked for; "": it has none.
	described   string
	describedAt time.Time
}

func newAggregator(s *Server) *aggregator {
	g := &aggregator{Server: s, services: registry.For[*apiregistrationv1.APIService](s.reg), backends: map[string]*backend{}}
	if s.nodes != nil {
		g.own = ownServices(s)
	}
	s.reg.SetVirtual(apiregistrationv1.SchemeGroupVersion.WithResource("apiservices").GroupResource(), g.local)
	return g
}

// serve answers a request for a group version that is another's. It reports
// false if it is not.
func (g *aggregator) serve(w http.ResponseWriter, req *http.Request) bool {
	parts := strings.SplitN(strings.Trim(req.URL.Path, "/"), "/", 4)
	if len(parts) < 3 || parts[0] != "apis" || g.api().servesGroupVersion(strings.Join(parts[:3], "/")) {
		return false
	}
	svc, ok := g.find(parts[2] + "." + parts[1])
	if !ok {
		return false
	}
	if !isAvailable(svc) {
		g.respondError(w, req, apierrors.NewServiceUnavailable("service unavailable"))
		return true
	}
	b, err := g.backend(svc)
	if err != nil {
		g.respondError(w, req, apierrors.NewInternalError(err))
		return true
	}
	u, _ := registry.UserFrom(req.Context())
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL = &url.URL{Scheme: "https", Host: svcHost(&b.spec), Path: req.URL.Path, RawQuery: req.URL.RawQuery}
			r.Out.Host = r.Out.URL.Host
			setUser(r.Out, u)
			r.SetXForwarded()
		},
		Transport: b.transport, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
			g.respondError(w, req, apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err)))
		},
	}
	rp.ServeHTTP(w, req)
	return true
}

// setUser tells who asks, in the place of how they proved it.
func setUser(req *http.Request, u user.Info) {
	req.Header.Del("Authorization")
	if u != nil {
		transport.SetAuthProxyHeaders(req, u.GetName(), u.GetUID(), u.GetGroups(), u.GetExtra())
	}
}

func svcHost(spec *apiregistrationv1.APIServiceSpec) string {
	return net.JoinHostPort(spec.Service.Name+"."+spec.Service.Namespace+".svc", strconv.Itoa(int(servicePort(spec))))
}

func servicePort(spec *apiregistrationv1.APIServiceSpec) int32 {
	if spec.Service.Port == nil {
		return 443
	}
	return *spec.Service.Port
}

func isAvailable(svc *apiregistrationv1.APIService) bool {
	return slices.ContainsFunc(svc.Status.Conditions, func(c apiregistrationv1.APIServiceCondition) bool {
		return c.Type == apiregistrationv1.Available && c.Status == apiregistrationv1.ConditionTrue
	})
}

// backend returns the way to an APIService's server.
func (g *aggregator) backend(svc *apiregistrationv1.APIService) (*backend, error) {
	if own := g.own[svc.Name]; own.service == svc {
		return own.backend, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	have := g.backends[svc.Name]
	if have != nil && equality.Semantic.DeepEqual(have.spec, svc.Spec) {
		return have, nil
	}
	if have != nil {
		have.transport.CloseIdleConnections()
	}
	spec := *svc.Spec.DeepCopy()
	secure := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: spec.Service.Name + "." + spec.Service.Namespace + ".svc", InsecureSkipVerify: spec.InsecureSkipTLSVerify}
	if len(spec.CABundle) > 0 {
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(spec.CABundle) {
			return nil, fmt.Errorf("APIService %s: no certificate in its caBundle", svc.Name)
		}
	}
	if g.cfg.FrontProxy != nil {
		secure.GetClientCertificate = g.cfg.FrontProxy
	}
	dial := g.cfg.ProxyDial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	b := &backend{spec: spec, transport: &http.Transport{
		TLSClientConfig: secure, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			address, _, err := g.locate(&spec)
			if err != nil {
				return nil, err
			}
			return dial(ctx, network, address)
		},
	}}
	g.backends[svc.Name] = b
	return b, nil
}

// locate finds a ready endpoint; reason is upstream's for a condition.
func (g *aggregator) locate(spec *apiregistrationv1.APIServiceSpec) (address, reason string, err error) {
	ref := spec.Service
	svc, ok := registry.For[*corev1.Service](g.reg).Get(ref.Namespace, ref.Name)
	if !ok {
		return "", "ServiceNotFound", fmt.Errorf("service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(servicePort(spec)))), "", nil
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == servicePort(spec) })
	if i < 0 {
		return "", "ServicePortError", fmt.Errorf("service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, servicePort(spec))
	}
	ip, port, ok := g.endpoint(svc, svc.Spec.Ports[i].Name)
	if !ok {
		return "", "MissingEndpoints", fmt.Errorf("endpoints for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, svc.Spec.Ports[i].Name)
	}
	return net.JoinHostPort(ip, strconv.Itoa(int(port))), "", nil
}

// resources asks what a server has, unless that is known since a moment ago.
func (g *aggregator) resources(ctx context.Context, svc *apiregistrationv1.APIService) (found *metav1.APIResourceList, current bool) {
	b, err := g.backend(svc)
	if err != nil {
		return nil, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.asked) < serviceCheck && b.current {
		return b.found, true
	}
	list, err := g.ask(ctx, b)
	b.asked, b.current = time.Now(), err == nil
	if err == nil {
		b.found = list
	}
	return b.found, b.current
}

func (g *aggregator) ask(ctx context.Context, b *backend) (*metav1.APIResourceList, error) {
	list := &metav1.APIResourceList{}
	return list, b.fetch(ctx, "/apis/"+b.spec.Group+"/"+b.spec.Version, maxDiscovery, list)
}

// fetch reads a document of the server's, in this server's own name.
func (b *backend) fetch(ctx context.Context, path string, bound int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	to := url.URL{Scheme: "https", Host: svcHost(&b.spec), Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	setUser(req, &user.DefaultInfo{Name: "system:kube-aggregator", Groups: []string{user.SystemPrivilegedGroup}})
	resp, err := (&http.Client{Transport: b.transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("bad status from %s: %d", to.String(), resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, bound)).Decode(into); err != nil {
		return fmt.Errorf("reading %s: %w", to.String(), err)
	}
	return nil
}

// groups are the groups that others serve, with their APIServices, preferred
// versions first.
func (g *aggregator) groups() map[string][]*apiregistrationv1.APIService {
	out := map[string][]*apiregistrationv1.APIService{}
	for _, svc := range g.services.List("") {
		path := "apis/" + svc.Spec.Group + "/" + svc.Spec.Version
		if svc.Spec.Service != nil && !g.api().servesGroupVersion(path) {
			out[svc.Spec.Group] = append(out[svc.Spec.Group], svc)
		}
	}
	for name, own := range g.own {
		if svc, ok := g.find(name); ok && svc == own.service {
			out[svc.Spec.Group] = append(out[svc.Spec.Group], svc)
		}
	}
	for _, list := range out {
		slices.SortStableFunc(list, func(a, b *apiregistrationv1.APIService) int {
			return cmp.Compare(b.Spec.VersionPriority, a.Spec.VersionPriority)
		})
	}
	return out
}

// legacy is a group as /apis and /apis/<group> show it.
func legacyForeign(name string, services []*apiregistrationv1.APIService) *metav1.APIGroup {
	g := group{name: name}
	for _, svc := range services {
		g.versions = append(g.versions, svc.Spec.Version)
	}
	return legacyGroup(g)
}

// aggregated is a group as the aggregated document shows it. A server that does
// not answer is shown as it was, and as stale.
func (g *aggregator) aggregated(ctx context.Context, name string, services []*apiregistrationv1.APIService) apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, svc := range services {
		version := apidiscoveryv2.APIVersionDiscovery{Version: svc.Spec.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale}
		found, current := g.resources(ctx, svc)
		if current {
			version.Freshness = apidiscoveryv2.DiscoveryFreshnessCurrent
		}
		if found != nil {
			version.Resources = discoveryOf(schema.GroupVersion{Group: name, Version: svc.Spec.Version}, found)
		}
		out.Versions = append(out.Versions, version)
	}
	return out
}

// discoveryOf puts subresources below their resources.
func discoveryOf(gv schema.GroupVersion, list *metav1.APIResourceList) []apidiscoveryv2.APIResourceDiscovery {
	kind := func(r *metav1.APIResource) *metav1.GroupVersionKind {
		k := &metav1.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: r.Kind}
		if r.Group != "" {
			k.Group = r.Group
		}
		if r.Version != "" {
			k.Version = r.Version
		}
		return k
	}
	var out []apidiscoveryv2.APIResourceDiscovery
	for i := range list.APIResources {
		r := &list.APIResources[i]
		if strings.Contains(r.Name, "/") {
			continue
		}
		d := apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Name, Scope: apidiscoveryv2.ScopeCluster, SingularResource: r.SingularName, Verbs: r.Verbs,
			ShortNames: r.ShortNames, Categories: r.Categories, ResponseKind: kind(r),
		}
		if r.Namespaced {
			d.Scope = apidiscoveryv2.ScopeNamespace
		}
		for j := range list.APIResources {
			if sub, ok := strings.CutPrefix(list.APIResources[j].Name, r.Name+"/"); ok {
				d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{
					Subresource: sub, Verbs: list.APIResources[j].Verbs, ResponseKind: kind(&list.APIResources[j]),
				})
			}
		}
		out = append(out, d)
	}
	return out
}

// CheckServices keeps the condition Available of every APIService true to what
// its server answers, until ctx ends. One device, the leader, runs it; without
// APIServices of others it sleeps.
func (s *Server) CheckServices(ctx context.Context) error {
	g := s.others
	bell := make(chan struct{}, 1)
	ring := func() {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
	defer g.services.Subscribe(func(registry.Event[*apiregistrationv1.APIService]) { ring() })()
	defer registry.For[*discoveryv1.EndpointSlice](g.reg).Subscribe(func(e registry.Event[*discoveryv1.EndpointSlice]) {
		if g.uses(e.Object.Namespace, e.Object.Labels[discoveryv1.LabelServiceName]) {
			ring()
		}
	})()
	t := time.NewTicker(serviceCheck)
	defer t.Stop()
	for {
		missing := false
		for _, svc := range g.services.List("") {
			if svc.Spec.Service != nil && !g.check(ctx, svc) {
				missing = true
			}
		}
		var again <-chan time.Time
		if missing { // somebody waits for it
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-bell:
		case <-t.C:
		case <-again:
		}
	}
}

// uses reports whether an APIService is served by this Service.
func (g *aggregator) uses(ns, service string) bool {
	return slices.ContainsFunc(g.services.List(""), func(svc *apiregistrationv1.APIService) bool {
		return svc.Spec.Service != nil && svc.Spec.Service.Namespace == ns && svc.Spec.Service.Name == service
	})
}

// check writes what became of one APIService, if that is news.
func (g *aggregator) check(ctx context.Context, svc *apiregistrationv1.APIService) (available bool) {
	now := apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, Reason: "Passed", Message: "all checks passed"}
	if _, reason, err := g.locate(&svc.Spec); err != nil {
		now.Status, now.Reason, now.Message = apiregistrationv1.ConditionFalse, reason, err.Error()
	} else if b, err := g.backend(svc); err != nil {
		now.Status, now.Reason, now.Message = apiregistrationv1.ConditionFalse, "FailedDiscoveryCheck", err.Error()
	} else if _, err := g.ask(ctx, b); err != nil {
		now.Status, now.Reason, now.Message = apiregistrationv1.ConditionFalse, "FailedDiscoveryCheck", "failing or missing response: "+err.Error()
	}
	if ctx.Err() != nil {
		return false
	}
	_, err := g.services.UpdateStatus(ctx, "", svc.Name, func(s *apiregistrationv1.APIService) error {
		for i, c := range s.Status.Conditions {
			if c.Type != now.Type {
				continue
			}
			if c.Status == now.Status && c.Reason == now.Reason {
				return nil // its words alone are no news
			}
			now.LastTransitionTime = c.LastTransitionTime
			if c.Status != now.Status {
				now.LastTransitionTime = metav1.Now()
			}
			s.Status.Conditions[i] = now
			return nil
		}
		now.LastTransitionTime = metav1.Now()
		s.Status.Conditions = append(s.Status.Conditions, now)
		return nil
	})
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		g.logger.Warn("an APIService's condition could not be written", "apiservice", svc.Name, "err", err)
	}
	return now.Status == apiregistrationv1.ConditionTrue
}
