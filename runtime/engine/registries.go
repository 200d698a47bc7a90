package engine

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"sigs.k8s.io/yaml"
)

// registries is a registries.yaml, in the format that k3s made common.
type registries struct {
	Mirrors map[string]mirror         `json:"mirrors"`
	Configs map[string]registryConfig `json:"configs"`

	path string
}

// mirror is where the images of one registry, or of "*", are asked for first.
type mirror struct {
	Endpoints []string          `json:"endpoint"`
	Rewrites  map[string]string `json:"rewrite"`
}

// registryConfig is of a host, as an endpoint names it.
type registryConfig struct {
	Auth *struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identity_token"`
	} `json:"auth"`
	TLS *struct {
		CAFile             string `json:"ca_file"`
		CertFile           string `json:"cert_file"`
		KeyFile            string `json:"key_file"`
		InsecureSkipVerify bool   `json:"insecure_skip_verify"`
	} `json:"tls"`
}

// readRegistries reads a registries.yaml, which need not exist.
func readRegistries(path string) (*registries, error) {
	r := &registries{path: path}
	if path == "" {
		return r, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = yaml.UnmarshalStrict(data, r)
	}
	if err == nil {
		err = r.check()
	}
	if err != nil {
		// Not wrapped: an error of the parser may quote a password.
		return nil, fmt.Errorf("read %s: %s", path, firstLine(err))
	}
	return r, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (r *registries) check() error {
	for host, m := range r.Mirrors {
		for _, e := range m.Endpoints {
			if _, err := endpointURL(e); err != nil {
				return fmt.Errorf("mirrors: %s: endpoint %q: %w", host, e, err)
			}
		}
		for pattern := range m.Rewrites {
			if _, err := regexp.Compile(pattern); err != nil {
				return fmt.Errorf("mirrors: %s: rewrite: %w", host, err)
			}
		}
	}
	return nil
}

func endpointURL(endpoint string) (*url.URL, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("want https://host[:port][/path] or http://")
	}
	return u, nil
}

// auth are the credentials for a host that no Pod brings.
func (r *registries) auth(host string) Auth {
	a := r.Configs[host].Auth
	if a == nil {
		return Auth{}
	}
	out := Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
	if out.Username == "" && a.Auth != "" {
		if data, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			out.Username, out.Password, _ = strings.Cut(string(data), ":")
		}
	}
	return out
}

// hosts puts the mirrors before the hosts that next knows, which stay the last
// resort, and gives hosts their TLS.
func (r *registries) hosts(next docker.RegistryHosts, opts dockerconfig.HostOptions) docker.RegistryHosts {
	if len(r.Mirrors) == 0 && len(r.Configs) == 0 {
		return next
	}
	return func(host string) ([]docker.RegistryHost, error) {
		m, ok := r.Mirrors[host]
		if !ok {
			m = r.Mirrors["*"]
		}
		var out []docker.RegistryHost
		for _, e := range m.Endpoints {
			h, err := r.endpoint(e, m, opts)
			if err != nil {
				return nil, fmt.Errorf("%s: mirrors: %s: endpoint %s: %w", r.path, host, e, err)
			}
			out = append(out, h)
		}
		last, err := next(host)
		if err != nil {
			return nil, err
		}
		for _, h := range last {
			if r.Configs[h.Host].TLS != nil {
				if h.Client, err = r.client(h.Host, opts); err != nil {
					return nil, fmt.Errorf("%s: configs: %s: %w", r.path, h.Host, err)
				}
				h.Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(h.Client), docker.WithAuthCreds(opts.Credentials))
				h.Scheme = "https"
			}
			out = append(out, h)
		}
		return out, nil
	}
}

func (r *registries) endpoint(endpoint string, m mirror, opts dockerconfig.HostOptions) (docker.RegistryHost, error) {
	u, err := endpointURL(endpoint)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	client, err := r.client(u.Host, opts)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	path := strings.TrimSuffix(u.Path, "/")
	if path == "" {
		path = "/v2"
	}
	h := docker.RegistryHost{
		Client: client, Host: u.Host, Scheme: u.Scheme, Path: path,
		Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(opts.Credentials)),
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
	if len(m.Rewrites) > 0 {
		c := *client
		c.Transport = rewriting{next: client.Transport, host: u.Host, prefix: path + "/", rules: m.Rewrites}
		h.Client = &c
	}
	return h, nil
}

// client makes the HTTP client for a host, with its TLS.
func (r *registries) client(host string, opts dockerconfig.HostOptions) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t := r.Configs[host].TLS; t != nil {
		cfg.InsecureSkipVerify = t.InsecureSkipVerify
		if t.CAFile != "" {
			pem, err := os.ReadFile(t.CAFile)
			if err != nil {
				return nil, fmt.Errorf("ca_file: %w", err)
			}
			if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
				cfg.RootCAs = x509.NewCertPool()
			}
			if !cfg.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("ca_file: %s has no certificate", t.CAFile)
			}
		}
		if t.CertFile != "" || t.KeyFile != "" {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("cert_file, key_file: %w", err)
			}
			cfg.Certificates = []tls.Certificate{pair}
		}
	}
	c := &http.Client{Transport: docker.DefaultHTTPTransport(cfg)}
	return c, opts.UpdateClient(c)
}

// rewriting changes the names of repositories on their way to a mirror.
type rewriting struct {
	next         http.RoundTripper
	host, prefix string
	rules        map[string]string
}

func (t rewriting) RoundTrip(req *http.Request) (*http.Response, error) {
	rest, ok := strings.CutPrefix(req.URL.Path, t.prefix)
	if !ok || req.URL.Host != t.host {
		return t.next.RoundTrip(req)
	}
	for _, kind := range []string{"/manifests/", "/blobs/", "/referrers/"} {
		if i := strings.LastIndex(rest, kind); i > 0 {
			if name := t.rewrite(rest[:i]); name != rest[:i] {
				req = req.Clone(req.Context())
				req.URL.Path, req.URL.RawPath = t.prefix+name+rest[i:], ""
			}
			break
		}
	}
	return t.next.RoundTrip(req)
}

// rewrite applies the first rule that matches, in the order of their patterns.
func (t rewriting) rewrite(name string) string {
	for _, pattern := range slices.Sorted(maps.Keys(t.rules)) {
		if re, err := regexp.Compile(pattern); err == nil && re.MatchString(name) {
			return re.ReplaceAllString(name, t.rules[pattern])
		}
	}
	return name
}
