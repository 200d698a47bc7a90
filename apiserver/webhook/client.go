package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

const (
	// maxAnswer bounds what a webhook may answer: an object and a patch of it.
	maxAnswer = 8 << 20
	// maxClients bounds the connections' pools; the ones used least recently go.
	maxClients = 32
	idleConn   = 30 * time.Second
)

// Target is where a webhook is: a URL or a Service.
type Target struct {
	URL string
	// Namespace, Name, Path and Port of a Service, if URL is empty.
	Namespace, Name, Path string
	Port                  int32
	// CABundle holds the certificates that the webhook's own is checked by; the
	// system's if empty.
	CABundle []byte
}

// newTarget reads a client configuration, of which Kubernetes has two types with the
// same fields. A URL goes before a Service.
func newTarget(caBundle []byte, url *string, namespace, name string, path *string, port *int32) *Target {
	if url != nil {
		return &Target{URL: *url, CABundle: caBundle}
	}
	return &Target{Namespace: namespace, Name: name, Path: ptr.Deref(path, ""), Port: ptr.Deref(port, 0), CABundle: caBundle}
}

// Client posts reviews. It keeps connections for a while.
type Client struct {
	reg  *registry.Registry
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu      sync.Mutex // guards what follows
	clients map[[sha256.Size]byte]*pooled
}

type pooled struct {
	http *http.Client
	used time.Time
}

// NewClient returns a Client that finds Services in r. dial reaches Pods; nil
// dials from this device's network.
func NewClient(r *registry.Registry, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	return &Client{reg: r, dial: dial, clients: map[[sha256.Size]byte]*pooled{}}
}

// Close gives idle connections up.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.clients {
		p.http.CloseIdleConnections()
	}
	return nil
}

// Post sends in as JSON and reads the answer into out.
func (c *Client) Post(ctx context.Context, t *Target, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	to, err := t.url()
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok { // the webhook is told how long it has
		seconds := int64((time.Until(deadline) + time.Second - 1) / time.Second)
		q := to.Query()
		q.Set("timeout", strconv.FormatInt(max(seconds, 1), 10)+"s")
		to.RawQuery = q.Encode()
	}
	client, err := c.client(t)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return fmt.Errorf("the server answered %s", resp.Status)
	case len(answer) > maxAnswer:
		return fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// host is the name that the webhook's certificate must have.
func (t *Target) host() string { return t.Name + "." + t.Namespace + ".svc" }

func (t *Target) url() (*url.URL, error) {
	if t.URL != "" {
		return url.Parse(t.URL)
	}
	port := t.Port
	if port == 0 {
		port = 443
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(t.host(), strconv.Itoa(int(port))), Path: t.Path}, nil
}

// client returns the pool of connections to t.
func (c *Client) client(t *Target) (*http.Client, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%s", t.URL, t.host(), t.Port, t.CABundle))
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.clients[key]; p != nil {
		p.used = time.Now()
		return p.http, nil
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(t.CABundle) > 0 {
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, errors.New("unable to load root certificates: no certificate in caBundle")
		}
	}
	dial := c.dial
	if t.URL == "" {
		secure.ServerName = t.host()
		namespace, name, port := t.Namespace, t.Name, t.Port
		dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			address, err := c.endpoint(namespace, name, port)
			if err != nil {
				return nil, err
			}
			return c.dial(ctx, network, address)
		}
	}
	c.evict()
	p := &pooled{used: time.Now(), http: &http.Client{
		Transport: &http.Transport{
			DialContext: dial, TLSClientConfig: secure, TLSHandshakeTimeout: 10 * time.Second,
			IdleConnTimeout: idleConn, MaxIdleConnsPerHost: 4, ForceAttemptHTTP2: true,
		},
		// A webhook that sends its callers elsewhere is none.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	c.clients[key] = p
	return p.http, nil
}

// evict makes room for a client; mu is held.
func (c *Client) evict() {
	for len(c.clients) >= maxClients {
		var oldest [sha256.Size]byte
		var since time.Time
		for key, p := range c.clients {
			if since.IsZero() || p.used.Before(since) {
				oldest, since = key, p.used
			}
		}
		c.clients[oldest].http.CloseIdleConnections()
		delete(c.clients, oldest)
	}
}

// endpoint is the address of any ready Pod of a Service's port.
func (c *Client) endpoint(namespace, name string, port int32) (string, error) {
	if port == 0 {
		port = 443
	}
	svc, ok := registry.For[*corev1.Service](c.reg).Get(namespace, name)
	if !ok {
		return "", fmt.Errorf("service %q not found", name)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(port))), nil
	}
	portName, found := "", false
	for _, p := range svc.Spec.Ports {
		if p.Port == port {
			portName, found = p.Name, true
		}
	}
	if !found {
		return "", fmt.Errorf("no service port %d found for service %q", port, name)
	}
	var ready []string
	for _, slice := range registry.For[*discoveryv1.EndpointSlice](c.reg).List(namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] != name || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != portName {
				continue
			}
			for _, e := range slice.Endpoints {
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
					ready = append(ready, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	if len(ready) == 0 {
		return "", fmt.Errorf("no endpoints available for service %q", name)
	}
	return ready[rand.IntN(len(ready))], nil
}
