package webhook

import (
	"context"
	"slices"
	"strings"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// write is a write as it is asked about: its object in whatever version a rule
// names.
type write struct {
	reg *registry.Registry
	a   *registry.Attributes
	// obj and old are the objects in the version of the request; nil if there
	// is none.
	obj, old runtime.Object
	gvk      schema.GroupVersionKind // of the request
	// projected says that they are a subresource's own, which nobody changes.
	projected bool
}

func newWrite(r *registry.Registry, a *registry.Attributes) (*write, error) {
	w := &write{reg: r, a: a, gvk: a.Resource.GroupVersion().WithKind(a.Kind.GVK.Kind)}
	obj, old := a.Object, a.OldObject
	if sub := a.Kind.Subresources[a.Subresource]; sub != nil && sub.Projection != nil {
		w.projected, w.gvk = true, sub.GVK
		var err error
		if obj, err = project(sub.Projection, obj); err != nil {
			return nil, err
		}
		if old, err = project(sub.Projection, old); err != nil {
			return nil, err
		}
	} else if gvk, foreign := w.foreign(obj); foreign {
		w.projected, w.gvk = true, gvk
		obj.GetObjectKind().SetGroupVersionKind(gvk)
	}
	var err error
	if w.obj, err = w.convert(obj, w.gvk); err != nil {
		return nil, err
	}
	w.old, err = w.convert(old, w.gvk)
	return w, err
}

// foreign reports whether obj is of another kind than the resource: the options
// of a connection, the request of a token.
func (w *write) foreign(obj runtime.Object) (schema.GroupVersionKind, bool) {
	if obj == nil || w.a.Kind.Custom != nil {
		return schema.GroupVersionKind{}, false
	}
	gvks, _, err := codec.Scheme().ObjectKinds(obj)
	if err != nil || gvks[0].Kind == w.gvk.Kind {
		return schema.GroupVersionKind{}, false
	}
	return gvks[0], true
}

func project(p *registry.Projection, obj runtime.Object) (runtime.Object, error) {
	if obj == nil {
		return nil, nil
	}
	return p.Get(obj)
}

// convert returns obj, which it does not change, in another version.
func (w *write) convert(obj runtime.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	if obj == nil || obj.GetObjectKind().GroupVersionKind() == gvk {
		return obj, nil
	}
	return w.a.Kind.ToVersion(obj.DeepCopyObject(), gvk)
}

// meaning is a write in the version in which a rule matches it.
type meaning struct {
	resource schema.GroupVersionResource
	kind     schema.GroupVersionKind
}

func (w *write) asRequested() meaning { return meaning{w.a.Resource, w.gvk} }

// match finds the first rule that the write matches: as it was requested, or
// with matchPolicy Equivalent in another version of its kind.
func (w *write) match(rules []v1.RuleWithOperations, policy *v1.MatchPolicyType) (meaning, bool) {
	for i := range rules {
		if w.matches(&rules[i], w.a.Resource) {
			return w.asRequested(), true
		}
	}
	if policy != nil && *policy == v1.Exact {
		return meaning{}, false
	}
	for i := range rules {
		for _, gv := range w.a.Kind.ServedVersions() {
			gvr := gv.WithResource(w.a.Resource.Resource)
			if gvr == w.a.Resource || !w.matches(&rules[i], gvr) {
				continue
			}
			kind := w.gvk
			if !w.projected {
				kind = gv.WithKind(w.gvk.Kind)
			}
			return meaning{gvr, kind}, true
		}
	}
	return meaning{}, false
}

func (w *write) matches(r *v1.RuleWithOperations, gvr schema.GroupVersionResource) bool {
	has := func(list []string, v string) bool { return slices.Contains(list, "*") || slices.Contains(list, v) }
	if !slices.Contains(r.Operations, v1.OperationAll) && !slices.Contains(r.Operations, v1.OperationType(w.a.Operation)) {
		return false
	}
	return has(r.APIGroups, gvr.Group) && has(r.APIVersions, gvr.Version) && w.inScope(r.Scope) &&
		slices.ContainsFunc(r.Resources, func(res string) bool { return matchesResource(res, gvr.Resource, w.a.Subresource) })
}

func matchesResource(rule, resource, subresource string) bool {
	res, sub, _ := strings.Cut(rule, "/")
	return (res == "*" || res == resource) && (sub == "*" || sub == subresource)
}

// inScope: a Namespace has itself for a namespace and is of the cluster.
func (w *write) inScope(scope *v1.ScopeType) bool {
	if scope == nil || *scope == v1.AllScopes {
		return true
	}
	return w.a.Kind.Namespaced == (*scope == v1.NamespacedScope)
}

// isNamespace reports whether the write is of a Namespace itself.
func (w *write) isNamespace() bool {
	return w.a.Resource.GroupResource() == schema.GroupResource{Resource: "namespaces"}
}

// namespace is the one that the object is in; nil for the cluster's.
func (w *write) namespace(ctx context.Context) (*corev1.Namespace, error) {
	if !w.a.Kind.Namespaced || w.a.Namespace == "" {
		return nil, nil
	}
	if ns, ok := registry.For[*corev1.Namespace](w.reg).Get("", w.a.Namespace); ok {
		return ns, nil
	}
	obj, err := w.reg.Get(ctx, schema.GroupResource{Resource: "namespaces"}, "", w.a.Namespace, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Namespace), nil
}

// selected compares the selectors with the labels of the namespace and of the
// object, new or old.
func (w *write) selected(ctx context.Context, namespaces, objects *metav1.LabelSelector) (bool, error) {
	sel, err := metav1.LabelSelectorAsSelector(namespaces)
	if err != nil {
		return false, err
	}
	if !sel.Empty() || sel == labels.Nothing() {
		ok, err := w.inNamespace(ctx, sel)
		if err != nil || !ok {
			return false, err
		}
	}
	if sel, err = metav1.LabelSelectorAsSelector(objects); err != nil || sel.Empty() {
		return err == nil, err
	}
	return has(w.obj, sel) || has(w.old, sel), nil
}

func has(obj runtime.Object, sel labels.Selector) bool {
	if obj == nil {
		return false
	}
	m, err := meta.Accessor(obj)
	return err == nil && sel.Matches(labels.Set(m.GetLabels()))
}

func (w *write) inNamespace(ctx context.Context, sel labels.Selector) (bool, error) {
	if w.isNamespace() {
		if w.obj != nil {
			return has(w.obj, sel), nil
		}
		return has(w.old, sel), nil
	}
	ns, err := w.namespace(ctx)
	if apierrors.IsNotFound(err) && w.a.Operation == admission.Delete {
		return false, nil // what is left of a namespace that is gone
	}
	if err != nil {
		return false, err
	}
	return ns == nil || sel.Matches(labels.Set(ns.Labels)), nil
}

// isExempt: nobody is asked about the configurations of who is asked.
func (w *write) isExempt() bool { return w.a.Resource.Group == v1.GroupName }

// attributes are the write as upstream's libraries see it.
func (w *write) attributes() admission.Attributes {
	u := w.a.User
	if u == nil {
		u = &user.DefaultInfo{}
	}
	ns := w.a.Namespace
	if w.isNamespace() {
		ns = w.a.Name
	}
	return admission.NewAttributesRecord(w.obj, w.old, w.gvk, ns, w.a.Name, w.a.Resource, w.a.Subresource, w.a.Operation, w.a.Options, w.a.DryRun, u)
}

// versioned are attributes with the objects in the version of a meaning.
func (w *write) versioned(m meaning) (*admission.VersionedAttributes, error) {
	v := &admission.VersionedAttributes{Attributes: w.attributes(), VersionedKind: m.kind}
	for _, o := range []struct {
		from runtime.Object
		to   *admission.LazyObject
	}{{w.obj, &v.VersionedObject}, {w.old, &v.VersionedOldObject}} {
		if o.from == nil {
			continue
		}
		converted, err := w.convert(o.from, m.kind)
		if err != nil {
			return nil, err
		}
		o.to.Set(converted)
	}
	return v, nil
}

// change replaces the object by one of the version of a meaning.
func (w *write) change(obj runtime.Object) error {
	w.a.Kind.SetDefaults(obj)
	stored, err := w.a.Kind.ToVersion(obj, w.a.Kind.GVK)
	if err != nil {
		return err
	}
	w.a.Object = stored
	w.obj, err = w.convert(stored, w.gvk)
	return err
}
