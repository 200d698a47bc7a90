package bootstrap

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
	"edged/controller/loop"
)

// Config is what a cluster begins with.
type Config struct {
	// Objects are further objects to make: RBAC's roles and bindings.
	Objects []runtime.Object
	// ServiceIP is the address of default/kubernetes; one is chosen if it is
	// not valid.
	ServiceIP netip.Addr
	// APIAddresses are where the API is served now. It is asked again when a
	// node changes.
	APIAddresses func() []netip.AddrPort
}

// What the queue's keys stand for.
const (
	keyNamespaces = "namespaces"
	keyObjects    = "objects"
	keyService    = "service"
)

type controller struct {
	env loop.Env
	cfg Config
}

// Run returns the controller.
func Run(cfg Config) loop.Run {
	return func(ctx context.Context, env loop.Env) error {
		c := &controller{env: env, cfg: cfg}
		q := loop.NewQueue(loop.Config{Name: "bootstrap", Workers: 1, Reconcile: c.sync, Logger: env.Logger})
		q.Add(keyNamespaces)
		q.Add(keyObjects)
		q.Add(keyService)
		defer onChange(env.Registry, q, keyNamespaces, func(o *corev1.Namespace) bool { return slices.Contains(Namespaces, o.Name) })()
		defer onChange(env.Registry, q, keyService, func(*corev1.Node) bool { return true })()
		defer onChange(env.Registry, q, keyService, isOurs[*corev1.Service])()
		defer onChange(env.Registry, q, keyService, isOurs[*corev1.Endpoints])()
		defer onChange(env.Registry, q, keyService, isOurs[*discoveryv1.EndpointSlice])()
		return q.Run(ctx)
	}
}

func isOurs[T metav1.Object](o T) bool {
	return o.GetNamespace() == metav1.NamespaceDefault && o.GetName() == serviceName
}

// onChange adds key for changes of objects that exist already when it is
// called, not for those that exist.
func onChange[T runtime.Object](r *registry.Registry, q *loop.Queue, key string, cond func(T) bool) (cancel func()) {
	return registry.For[T](r).Subscribe(func(e registry.Event[T]) {
		if e.Type != watch.Added && cond(e.Object) {
			q.Add(key)
		}
	})
}

func (c *controller) sync(ctx context.Context, key string) (time.Duration, error) {
	switch key {
	case keyNamespaces:
		var errs []error
		for _, name := range Namespaces {
			errs = append(errs, c.ensure(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
		}
		return 0, errors.Join(errs...)
	case keyObjects:
		var errs []error
		for _, o := range slices.Concat(PriorityClasses(), []runtime.Object{claims.LocalClass()}, c.cfg.Objects) {
			errs = append(errs, c.ensure(ctx, o))
		}
		return 0, errors.Join(errs...)
	}
	return 0, c.service(ctx)
}

func (c *controller) service(ctx context.Context) error {
	var addrs []netip.AddrPort
	if c.cfg.APIAddresses != nil {
		addrs = c.cfg.APIAddresses()
	}
	port := uint16(6443)
	if len(addrs) > 0 {
		port = addrs[0].Port()
	}
	return errors.Join(
		c.ensure(ctx, Service(c.cfg.ServiceIP, port)),
		c.ensure(ctx, Endpoints(addrs)),
		c.ensure(ctx, Slice(addrs)),
	)
}

// ensure makes want, or brings what is there in line with it.
func (c *controller) ensure(ctx context.Context, want runtime.Object) error {
	kind := c.kindOf(want)
	if kind == nil {
		return nil // its kind is not served
	}
	m, err := meta.Accessor(want)
	if err != nil {
		return err
	}
	gr := kind.GroupResource()
	if _, ok := c.env.Registry.Cached(kind, m.GetNamespace(), m.GetName()); !ok {
		_, err = c.env.Registry.Create(ctx, gr, m.GetNamespace(), want.DeepCopyObject(), registry.CreateOptions{})
		if err == nil || !apierrors.IsAlreadyExists(err) {
			return describe(gr.Resource, m, err)
		}
	}
	_, _, err = c.env.Registry.Update(ctx, gr, m.GetNamespace(), m.GetName(), "", func(cur runtime.Object) (runtime.Object, error) {
		Reconcile(cur, want.DeepCopyObject())
		return cur, nil
	}, registry.UpdateOptions{})
	return describe(gr.Resource, m, err)
}

func describe(resource string, m metav1.Object, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("making %s %s: %w", resource, m.GetName(), err)
}

func (c *controller) kindOf(o runtime.Object) *registry.Kind {
	t := reflect.TypeOf(o)
	for _, k := range c.env.Registry.Kinds() {
		if reflect.TypeOf(k.New()) == t {
			return k
		}
	}
	return nil
}
