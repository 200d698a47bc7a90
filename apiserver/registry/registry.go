package registry

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"edged/apiserver/objcache"
)

// Store is what the registry needs of raftstore; see FromRaft.
type Store interface {
	objcache.Store
	Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error)
	// ReadIndex returns a revision at least as new as every write acknowledged
	// before the call, on any device; ErrNoQuorum if that cannot be known.
	ReadIndex(ctx context.Context) (int64, error)
	LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error)
}

// What a Store's watches are made of; see objcache.
type (
	WatchRequest = objcache.WatchRequest
	Watcher      = objcache.Watcher
	Batch        = objcache.Batch
)

// ErrNoQuorum is what a Store answers while this device is cut off from most of
// the others.
var ErrNoQuorum = errors.New("no leader: this device does not reach most of the cluster's devices")

// staleWarning goes with what is read while there is no quorum.
const staleWarning = "this device does not reach most of the cluster's devices: what it shows may be out of date"

// ErrCompacted is what a Store answers when the history asked for is gone.
var ErrCompacted = objcache.ErrCompacted

// Options of requests are upstream's. ListOptions holds parsed selectors.
type (
	ListOptions   = metainternal.ListOptions
	CreateOptions = metav1.CreateOptions
	UpdateOptions = metav1.UpdateOptions
)

// Admission decides on writes after defaulting. Both methods see storage
// versions (and a subresource's own object where it has one).
type Admission interface {
	// Admit may change a.Object.
	Admit(ctx context.Context, a *Attributes) error
	// Validate sees the object as it will be written and must not change it.
	Validate(ctx context.Context, a *Attributes) error
}

// Attributes describe the write that Admission is asked about.
type Attributes struct {
	Operation       admission.Operation // Create, Update, Delete, Connect
	Kind            *Kind
	Resource        schema.GroupVersionResource // as requested
	Subresource     string
	Namespace, Name string
	// Object is nil for Delete. It is private to the request.
	Object runtime.Object
	// OldObject is nil for Create. It is shared and must not be changed.
	OldObject runtime.Object
	// Options are the *metav1.CreateOptions, UpdateOptions or DeleteOptions.
	Options runtime.Object
	DryRun  bool
	User    user.Info
}

// Config is what New needs.
type Config struct {
	Store     Store
	Kinds     []*Kind
	Admission Admission // nil admits everything
	Logger    *slog.Logger
	Clock     func() time.Time // nil: time.Now
	// VerifyCache makes the cache panic if a shared object was changed; for
	// tests.
	VerifyCache bool
}

// Registry serves the API. See the package comment.
type Registry struct {
	store     Store
	cache     *objcache.Cache
	admission Admission
	logger    *slog.Logger
	now       func() time.Time
	leases    leaser
	tracker   tracker

	table        atomic.Pointer[table]
	tableVersion atomic.Int64
	changeMu     sync.Mutex // held while the table changes
	all          everything
}

// Now is the clock that times in objects are of.
func (r *Registry) Now() time.Time { return r.now() }

// New returns a registry that serves cfg.Kinds once Run has loaded the store.
func New(cfg Config) (*Registry, error) {
	t, err := newTable(cfg.Kinds)
	if err != nil {
		return nil, err
	}
	r := &Registry{store: cfg.Store, admission: cfg.Admission, logger: cfg.Logger, now: cfg.Clock}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	cached := make([]objcache.Kind, 0, len(t.kinds))
	for _, k := range t.kinds {
		cached = append(cached, objcache.Kind{Prefix: k.keyPrefix(), Decode: k.codec.Decode, Indexes: k.indexes()})
	}
	r.cache = objcache.New(objcache.Config{Store: cfg.Store, Kinds: cached, Logger: r.logger, Verify: cfg.VerifyCache})
	for _, k := range t.kinds {
		k.set = r.cache.Set(k.keyPrefix())
		if !k.Hidden {
			r.all.begin(k, nil)
		}
	}
	r.publish(t)
	return r, nil
}

// SetAdmission replaces the admission chain; to be called before the registry
// is used, by who builds a chain that needs the registry itself.
func (r *Registry) SetAdmission(a Admission) { r.admission = a }

// Run follows the store until ctx ends.
func (r *Registry) Run(ctx context.Context) error { return r.cache.Run(ctx) }

// WaitReady waits until the registry has loaded the store.
func (r *Registry) WaitReady(ctx context.Context) error { return r.cache.WaitReady(ctx) }

// Kinds is the table, in order, without what is hidden from the API.
func (r *Registry) Kinds() []*Kind {
	return slices.DeleteFunc(slices.Clone(r.rows().kinds), func(k *Kind) bool { return k.Hidden })
}

// Kind returns the row of a resource, under any group that serves it.
func (r *Registry) Kind(gr schema.GroupResource) (*Kind, bool) {
	k, ok := r.rows().byResource[gr]
	return k, ok && !k.Hidden
}

// Revision is the store's revision that this device's reads show.
func (r *Registry) Revision() int64 { return r.cache.Revision() }

// Objects is the number of cached objects of a resource.
func (r *Registry) Objects(gr schema.GroupResource) int {
	if k := r.rows().byResource[gr]; k != nil {
		return k.set.Len()
	}
	return 0
}

// WithUser returns a context whose requests are made by u.
func WithUser(ctx context.Context, u user.Info) context.Context { return request.WithUser(ctx, u) }

// UserFrom returns who makes the request; without one it is the device itself,
// which may do everything.
func UserFrom(ctx context.Context) (user.Info, bool) { return request.UserFrom(ctx) }

// clockKey is of the registry's clock in the context of a request.
type clockKey struct{}

// NowOf is [Registry.Now] for the strategy of a kind, in the context of a request;
// time.Now in any other.
func NowOf(ctx context.Context) time.Time {
	if now, ok := ctx.Value(clockKey{}).(func() time.Time); ok {
		return now()
	}
	return time.Now()
}

// device is who in-process requests are made by.
var device = &user.DefaultInfo{Name: "system:edged", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}

// call is one request to a kind.
type call struct {
	ctx  context.Context
	kind *Kind
	gr   schema.GroupResource // as requested
	ns   string
	sub  string
	own  bool // made by the device itself
}

// begin resolves the resource and gives the context what strategies read from
// it.
func (r *Registry) begin(ctx context.Context, verb string, gr schema.GroupResource, ns, name, sub string) (*call, error) {
	k := r.rows().byResource[gr]
	if k == nil || k.Hidden {
		return nil, apierrors.NewNotFound(gr, name)
	}
	if !k.Namespaced {
		ns = ""
	}
	_, foreign := request.UserFrom(ctx)
	if !foreign {
		ctx = request.WithUser(ctx, device)
	}
	if have, ok := request.NamespaceFrom(ctx); !ok || have != ns {
		ctx = request.WithNamespace(ctx, ns)
	}
	info, ok := request.RequestInfoFrom(ctx)
	if !ok || info.APIGroup != gr.Group || info.Resource != gr.Resource || info.Subresource != sub {
		ctx = request.WithRequestInfo(ctx, &request.RequestInfo{
			IsResourceRequest: true, Verb: verb, APIGroup: gr.Group, APIVersion: k.versionIn(gr.Group),
			Namespace: ns, Resource: gr.Resource, Subresource: sub, Name: name,
		})
	}
	ctx = context.WithValue(ctx, clockKey{}, r.now)
	return &call{ctx: ctx, kind: k, gr: gr, ns: ns, sub: sub, own: !foreign}, nil
}

// versionIn is the version that the kind prefers in group.
func (k *Kind) versionIn(group string) string {
	if group == k.GVK.Group {
		return k.GVK.Version
	}
	for _, gv := range k.Served {
		if gv.Group == group {
			return gv.Version
		}
	}
	return k.GVK.Version
}

// waitFor makes a write that returned at revision visible to this device's
// reads. The write is done even if the wait is cut short.
func (r *Registry) waitFor(ctx context.Context, revision int64) {
	_ = r.cache.WaitFor(ctx, revision)
}

// fresh waits until the cache shows every write acknowledged before the call.
func (r *Registry) fresh(ctx context.Context) error { return storeError(r.current(ctx)) }

// freshOrStale is fresh for reads: without a quorum the client gets what this
// device has, and a warning.
func (r *Registry) freshOrStale(ctx context.Context) error {
	err := r.current(ctx)
	if errors.Is(err, ErrNoQuorum) {
		warning.AddWarning(ctx, "", staleWarning)
		return nil
	}
	return storeError(err)
}

func (r *Registry) current(ctx context.Context) error {
	revision, err := r.store.ReadIndex(ctx)
	if err != nil {
		return err
	}
	return r.cache.WaitFor(ctx, revision)
}
