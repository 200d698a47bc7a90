package gc

import (
	"context"
	"errors"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"edged/controller/foreign"
)

// others is what the servers of aggregated APIs hold, as far as it matters here:
// objects that name an owner or are being deleted. Their servers are followed, as
// upstream follows all resources; who has none holds nothing.
type others struct {
	c      *controller
	client *foreign.Client
	bell   chan struct{}

	mu      sync.Mutex // guards what follows
	objects map[types.UID]node
}

func newOthers(c *controller, client *foreign.Client) *others {
	return &others{c: c, client: client, bell: make(chan struct{}, 1), objects: map[types.UID]node{}}
}

// run follows them while work runs.
func (o *others) run(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.client.Monitor(ctx, o.bell, o, o.c.env.Logger)
	}()
	defer func() { cancel(); <-ended }()
	return work(ctx)
}

func (o *others) ring() {
	select {
	case o.bell <- struct{}{}:
	default: // it rings already
	}
}

// Listed replaces what is known of a resource. Owners that went while nobody
// watched are found by looking at everything that names one of this kind.
func (o *others) Listed(r foreign.Resource, objects []metav1.PartialObjectMetadata) {
	there := map[types.UID]bool{}
	for i := range objects {
		there[objects[i].UID] = true
	}
	o.mu.Lock()
	var gone []node
	for uid, n := range o.objects {
		if n.f.GroupVersionResource == r.GroupVersionResource && !there[uid] {
			gone = append(gone, n)
		}
	}
	o.mu.Unlock()
	for _, n := range gone {
		o.Changed(r, watch.Deleted, n.Object.(*metav1.PartialObjectMetadata))
	}
	for i := range objects {
		o.Changed(r, watch.Added, &objects[i])
	}
	o.c.lookForOwners(r)
}

// Changed keeps what matters of an object and looks at what follows from it.
func (o *others) Changed(r foreign.Resource, t watch.EventType, obj *metav1.PartialObjectMetadata) {
	n := node{f: &r, Object: obj}
	o.mu.Lock()
	old, known := o.objects[obj.UID]
	if t != watch.Deleted && (len(obj.OwnerReferences) > 0 || obj.DeletionTimestamp != nil) {
		kept := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: obj.Name, Namespace: obj.Namespace, UID: obj.UID, ResourceVersion: obj.ResourceVersion,
			OwnerReferences: obj.OwnerReferences, Finalizers: obj.Finalizers, DeletionTimestamp: obj.DeletionTimestamp,
		}}
		n.Object = kept
		o.objects[obj.UID] = n
	} else {
		delete(o.objects, obj.UID)
	}
	o.mu.Unlock()
	var was metav1.Object
	if known {
		was = old.Object
	}
	o.c.changed(t == watch.Deleted, n, was)
}

// Gone forgets a resource that is not served any more. Nothing is concluded of its
// objects: their server may come back.
func (o *others) Gone(r foreign.Resource) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for uid, n := range o.objects {
		if n.f.GroupVersionResource == r.GroupVersionResource {
			delete(o.objects, uid)
		}
	}
}

func (o *others) known(uid types.UID) (node, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.objects[uid]
	return n, ok
}

func (o *others) dependents(owner types.UID) []node {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []node
	for _, n := range o.objects {
		for _, ref := range n.GetOwnerReferences() {
			if ref.UID == owner {
				out = append(out, n)
				break
			}
		}
	}
	return out
}

// addOwner looks again at an owner that is being deleted.
func (o *others) addOwner(uid types.UID) {
	if n, ok := o.known(uid); ok && n.GetDeletionTimestamp() != nil {
		o.c.queue.Add(n.key())
	}
}

// owner asks the server that has the owner's kind. Owners of a kind that nobody
// serves are Unknown, as are those whose server does not answer: with an error, so
// that they are asked for again.
func (o *others) owner(ctx context.Context, n node, ref metav1.OwnerReference) (Owner, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return Unknown, nil
	}
	resources, err := o.client.Resources(ctx)
	for _, r := range resources {
		if r.Kind != ref.Kind || r.Group != gv.Group || !r.Can("get") {
			continue
		}
		if r.Namespaced && !n.namespaced() {
			o.c.invalidNamespace(n, ref)
			return Unknown, nil
		}
		found, err := o.client.Get(ctx, r, n.GetNamespace(), ref.Name)
		switch {
		case apierrors.IsNotFound(err):
			return Absent, nil
		case err != nil:
			return Unknown, err
		}
		return became(found, ref), nil
	}
	failed := (*foreign.DiscoveryError)(nil)
	if errors.As(err, &failed) && failed.Has(gv.Group) {
		return Unknown, err
	}
	return Unknown, nil
}

// lookForOwners looks at all objects that name an owner of this kind.
func (c *controller) lookForOwners(r foreign.Resource) {
	for _, k := range c.reg.Kinds() {
		for _, obj := range c.reg.CachedIn(k, "") {
			m, err := meta.Accessor(obj)
			if err != nil {
				continue
			}
			for _, ref := range m.GetOwnerReferences() {
				if gv, err := schema.ParseGroupVersion(ref.APIVersion); err == nil && gv.Group == r.Group && ref.Kind == r.Kind {
					c.queue.Add(node{k: k, Object: m}.key())
					break
				}
			}
		}
	}
}
