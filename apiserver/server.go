package apiserver

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/openapi"
	"edged/apiserver/registry"
)

// Authenticator tells who sent a request, and for TokenReview whom a token
// stands for.
type Authenticator interface {
	authenticator.Request
	authenticator.Token
}

// Authorizer decides about requests and, for SelfSubjectRulesReview, lists
// what a user may do.
type Authorizer interface {
	authorizer.UnconditionalAuthorizer
	authorizer.RuleResolver
}

// TokenIssuer makes ServiceAccount tokens and describes how to verify them.
type TokenIssuer interface {
	TokenRequest(ctx context.Context, namespace, name string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
	Audiences() authenticator.Audiences
	OpenIDConfig() ([]byte, error)
	Keyset() ([]byte, error)
}

// NodeConnector reaches the devices of the cluster.
type NodeConnector interface {
	// Handler serves the kubelet's API (/containerLogs, /exec, /attach,
	// /portForward and what else a device offers) of a device. It is handed
	// the client's own connection, upgrades included.
	Handler(node string) (http.Handler, error)
}

// CustomResources is what CustomResourceDefinitions make the API serve.
type CustomResources interface {
	openapi.Extra
	// Settled waits until the registry's table shows every definition that the
	// registry shows.
	Settled(ctx context.Context)
}

// Config is what a Server needs.
type Config struct {
	Registry      *registry.Registry
	Authenticator Authenticator
	Authorizer    Authorizer
	// Tokens answers serviceaccounts/token and the OpenID documents; nil
	// leaves both out.
	Tokens TokenIssuer
	// Admission is asked about token requests, which the registry does not see;
	// it is the registry's own chain. nil admits all.
	Admission registry.Admission
	// Nodes reaches devices for logs, exec and the like; nil answers them with
	// 503.
	Nodes NodeConnector
	// Custom tells what CustomResourceDefinitions add; nil: nothing.
	Custom CustomResources
	// Version is what /version says.
	Version version.Info
	// ServerAddress is what discovery tells in-cluster clients, host:port.
	ServerAddress string
	// Checks are the named health checks, in the order shown; nil: only that it
	// answers.
	Checks []HealthCheck
	// Leader tells why nobody leads: nobody schedules then, and no controller runs.
	// nil: somebody always does.
	Leader func() error
	// Metrics serves /metrics; nil leaves it out.
	Metrics http.Handler
	// Observe is told of each request that has ended: what it asked for, whether
	// that is something this server has (anything else is the client's words),
	// and the status code. nil is not told.
	Observe func(info *request.RequestInfo, known bool, code int)
	// Handlers serve further paths below the given prefixes, authorized as
	// non-resource URLs.
	Handlers map[string]http.Handler
	// ProxyDial dials Pods and Services for the proxy subresources; nil dials
	// from this device's network.
	ProxyDial func(ctx context.Context, network, address string) (net.Conn, error)
	// FrontProxy is the certificate by which servers of aggregated APIs know that
	// what this one says about users is true; nil: they are not shown any.
	FrontProxy func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	Logger     *slog.Logger
	// Limits bound what requests may take; zero fields have defaults.
	Limits Limits
}

// Limits bound what requests may take.
type Limits struct {
	// ReadsInFlight and WritesInFlight bound requests that run at once;
	// further ones wait up to QueueTimeout and then get 429.
	ReadsInFlight, WritesInFlight int
	QueueTimeout                  time.Duration
	// WatchesInFlight bounds watches, logs and upgraded connections.
	WatchesInFlight int
	// BodyBytes bounds request bodies (413).
	BodyBytes int64
	// RequestTimeout bounds requests that are not long-running.
	RequestTimeout time.Duration
	// WatchTimeout is how long a watch lasts at least if the client does not
	// say; the server ends it at a random time up to twice that.
	WatchTimeout time.Duration
}

// Defaults of Limits. Upstream runs 400 reads and 200 writes at once; with
// 512 MB of memory, 3 MiB bodies and one writer behind them all, fewer at once
// finish sooner.
const (
	defaultReadsInFlight   = 64
	defaultWritesInFlight  = 32
	defaultQueueTimeout    = 10 * time.Second
	defaultWatchesInFlight = 2000
	defaultBodyBytes       = 3 << 20 // upstream's MaxRequestBodyBytes
	defaultRequestTimeout  = 60 * time.Second
	defaultWatchTimeout    = 30 * time.Minute
)

func (l Limits) withDefaults() Limits {
	l.ReadsInFlight = or(l.ReadsInFlight, defaultReadsInFlight)
	l.WritesInFlight = or(l.WritesInFlight, defaultWritesInFlight)
	l.QueueTimeout = or(l.QueueTimeout, defaultQueueTimeout)
	l.WatchesInFlight = or(l.WatchesInFlight, defaultWatchesInFlight)
	l.BodyBytes = or(l.BodyBytes, defaultBodyBytes)
	l.RequestTimeout = or(l.RequestTimeout, defaultRequestTimeout)
	l.WatchTimeout = or(l.WatchTimeout, defaultWatchTimeout)
	return l
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Server is the API over HTTP.
type Server struct {
	reg     *registry.Registry
	authn   Authenticator
	authz   Authorizer
	tokens  TokenIssuer
	nodes   NodeConnector
	cfg     Config
	limits  Limits
	logger  *slog.Logger
	infos   request.RequestInfoResolver
	reads   chan struct{}
	writes  chan struct{}
	long    chan struct{}
	paths   map[string]http.HandlerFunc // non-resource paths, exact
	openapi *openapi.Handler
	catalog atomic.Pointer[catalogOf]
	proxy   http.RoundTripper
	others  *aggregator
	flows   flows
	printer *printer
}

// New returns a Server. Its discovery documents follow the registry's table of
// kinds.
func New(cfg Config) (*Server, error) {
	s := &Server{
		reg: cfg.Registry, authn: cfg.Authenticator, authz: cfg.Authorizer, tokens: cfg.Tokens, nodes: cfg.Nodes,
		cfg: cfg, limits: cfg.Limits.withDefaults(), logger: cfg.Logger,
		infos: &request.RequestInfoFactory{
			APIPrefixes:          sets.NewString("api", "apis"),
			GrouplessAPIPrefixes: sets.NewString("api"),
		},
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.reads = make(chan struct{}, s.limits.ReadsInFlight)
	s.writes = make(chan struct{}, s.limits.WritesInFlight)
	s.long = make(chan struct{}, s.limits.WatchesInFlight)
	s.others = newAggregator(s)
	s.flows = flows{registry.For[*flowcontrolv1.FlowSchema](s.reg), registry.For[*flowcontrolv1.PriorityLevelConfiguration](s.reg)}
	extras := []openapi.Extra{foreignDocuments{s.others}}
	if cfg.Custom != nil {
		extras = append(extras, cfg.Custom)
	}
	var err error
	if s.openapi, err = openapi.New(s.api().servesGroupVersion, extras...); err != nil {
		return nil, err
	}
	s.proxy = newProxyTransport(cfg.ProxyDial)
	s.reg.SetVirtual(coreV1.WithResource("componentstatuses").GroupResource(), s.components)
	s.printer = newPrinter(cfg.Registry)
	s.routePaths()
	return s, nil
}

// newProxyTransport reaches Pods, Services and devices for the proxy
// subresources. Certificates are not verified, as in upstream's API server:
// nobody could have told it the Pod's authority.
func newProxyTransport(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Transport {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		DialContext:         dial,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns:        16,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
}
