package registry

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"edged/apiserver/codec"
	"edged/apiserver/objcache"
)

// objectCodec turns objects into what the store keeps and back.
type objectCodec interface {
	Encode(obj runtime.Object) ([]byte, error)
	Decode(data []byte) (runtime.Object, error)
}

// Custom makes the objects of a kind that the scheme does not know: those that
// a CustomResourceDefinition describes. They are *unstructured.Unstructured.
// Cached ones are of the version that was stored, which need not be the
// storage version of now: converting may take a webhook, and the cache waits
// for nobody.
type Custom interface {
	objectCodec
	// Default sets the defaults of obj's version.
	Default(obj runtime.Object)
	// Convert returns obj in another version of the kind. It does not change
	// obj, and returns it if it is of that version.
	Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error)
	// Read makes an object of version gv of JSON or YAML. What strict reading
	// refuses is in a strict decoding error, with the object beside it.
	Read(data []byte, yaml, strict bool, gv schema.GroupVersion) (runtime.Object, error)
	// FieldManager tracks the fields of version gvk for server-side apply.
	FieldManager(gvk schema.GroupVersionKind, sub string, reset map[fieldpath.APIVersion]fieldpath.Filter) (*managedfields.FieldManager, error)
	// FieldLabel says whether the version has a selectable field.
	FieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error)
	// Fields are obj's selectable fields in a version, beyond its metadata.
	Fields(obj runtime.Object, gvk schema.GroupVersionKind) fields.Set
}

// newCustom is New of a custom kind.
func (k *Kind) newCustom() runtime.Object {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(k.GVK)
	return u
}

// isCustom reports whether obj is an object of a custom kind, and not that of
// a subresource.
func (k *Kind) isCustom(obj runtime.Object) bool {
	_, ok := obj.(*unstructured.Unstructured)
	return ok && k.Custom != nil
}

// ToVersion converts obj, of any version, to the given kind. The result may
// share memory with obj, or be obj, whose TypeMeta may be set.
func (k *Kind) ToVersion(obj runtime.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	if k.isCustom(obj) {
		return k.Custom.Convert(obj, gvk.GroupVersion())
	}
	return codec.ToVersion(obj, gvk)
}

// toStorage converts obj, which the caller owns, to the kind's storage version.
func (k *Kind) toStorage(obj runtime.Object) (runtime.Object, error) { return k.ToVersion(obj, k.GVK) }

// toInternal converts obj, which the caller owns, to what strategies see: the
// internal version, or the storage version of a custom kind.
func (k *Kind) toInternal(obj runtime.Object) (runtime.Object, error) {
	if k.isCustom(obj) {
		return k.toStorage(obj)
	}
	return codec.ToInternal(obj)
}

// toHub converts obj, which the caller owns, to the version in which the field
// manager of requests of version gvk works.
func (k *Kind) toHub(obj runtime.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	if k.isCustom(obj) {
		return k.ToVersion(obj, gvk)
	}
	return codec.ToInternal(obj)
}

// SetDefaults sets the defaults of obj's version.
func (k *Kind) SetDefaults(obj runtime.Object) {
	if k.isCustom(obj) {
		k.Custom.Default(obj)
		return
	}
	codec.Default(obj)
}

// newObject makes an empty object of the kind or of one of its subresources.
func (k *Kind) newObject(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if k.Custom != nil && gvk.GroupKind() == k.GVK.GroupKind() {
		u := &unstructured.Unstructured{Object: map[string]any{}}
		u.SetGroupVersionKind(gvk)
		return u, nil
	}
	return codec.Scheme().New(gvk)
}

func (k *Kind) fieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	if k.Custom != nil {
		return k.Custom.FieldLabel(gvk, label, value)
	}
	return codec.Scheme().ConvertFieldLabel(gvk, label, value)
}

// AddKind begins to serve a kind, in place of the one of that resource if there
// is one, and returns when its objects are there. The registry must be ready;
// it must not be called by a subscriber.
func (r *Registry) AddKind(ctx context.Context, k *Kind) error {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	old := r.rows().byResource[k.GroupResource()]
	if old != nil && old.Custom == nil {
		return fmt.Errorf("serving %s: it is built in", k.GroupResource())
	}
	kinds := slices.DeleteFunc(slices.Clone(r.rows().kinds), func(have *Kind) bool { return have == old })
	t, err := newTable(append(kinds, k))
	if err != nil {
		return err
	}
	if old != nil {
		r.cache.Remove(old.set, old.keyPrefix() != k.keyPrefix())
	}
	k.set, err = r.cache.Add(ctx, objcache.Kind{Prefix: k.keyPrefix(), Decode: k.codec.Decode, Indexes: k.indexes()})
	if err != nil {
		r.drop(old)
		return err
	}
	r.publish(t)
	r.all.begin(k, old)
	return nil
}

// RemoveKind ends what AddKind began. Subscribers are told that its objects are
// gone.
func (r *Registry) RemoveKind(k *Kind) {
	r.changeMu.Lock()
	defer r.changeMu.Unlock()
	if r.rows().byResource[k.GroupResource()] != k {
		return
	}
	r.cache.Remove(k.set, true)
	r.drop(k)
}

// drop takes a row out of the table; changeMu is held.
func (r *Registry) drop(k *Kind) {
	if k == nil {
		return
	}
	kinds := slices.DeleteFunc(slices.Clone(r.rows().kinds), func(have *Kind) bool { return have == k })
	if t, err := newTable(kinds); err == nil { // a table with a row less is as good as it was
		r.publish(t)
	}
	r.all.end(k)
}

func (r *Registry) rows() *table { return r.table.Load() }

func (r *Registry) publish(t *table) {
	r.table.Store(t)
	r.tableVersion.Add(1)
}

// TableVersion grows with every change of the table of kinds.
func (r *Registry) TableVersion() int64 { return r.tableVersion.Load() }
