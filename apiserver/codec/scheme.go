package codec

import (
	"fmt"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/install"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	// Each install package registers its group with legacyscheme.Scheme.
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	_ "k8s.io/kubernetes/pkg/apis/storagemigration/install"
)

// Upstream has CustomResourceDefinitions and APIServices in schemes of their own,
// for servers of their own.
func init() {
	apiextensions.Install(legacyscheme.Scheme)
	apiregistration.Install(legacyscheme.Scheme)
}

// Scheme knows the types of every group that edged serves, external and
// internal, with upstream's conversions and defaults.
func Scheme() *runtime.Scheme { return legacyscheme.Scheme }

// Codecs negotiates and builds upstream's serializers over Scheme.
func Codecs() serializer.CodecFactory { return legacyscheme.Codecs }

// ParameterCodec converts query parameters into option objects.
func ParameterCodec() runtime.ParameterCodec { return legacyscheme.ParameterCodec }

// ToInternal converts obj, of any version, to its group's internal version.
// obj is not changed, and the result may share memory with it: a caller that
// will mutate the result must own obj.
func ToInternal(obj runtime.Object) (runtime.Object, error) {
	out, err := Scheme().UnsafeConvertToVersion(obj, runtime.InternalGroupVersioner)
	if err != nil {
		return nil, fmt.Errorf("converting %T to its internal version: %w", obj, err)
	}
	return out, nil
}

// ToVersion converts obj to the given kind and sets its TypeMeta. Like
// ToInternal it may return an object that shares memory with obj, or obj
// itself, whose TypeMeta it then sets.
func ToVersion(obj runtime.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	gvks, _, err := Scheme().ObjectKinds(obj)
	if err != nil {
		return nil, err
	}
	if gvks[0] == gvk {
		if obj.GetObjectKind().GroupVersionKind() != gvk {
			obj.GetObjectKind().SetGroupVersionKind(gvk)
		}
		return obj, nil
	}
	if gvks[0].Version != runtime.APIVersionInternal && gvk.Version != runtime.APIVersionInternal {
		if obj, err = ToInternal(obj); err != nil {
			return nil, err
		}
	}
	out, err := Scheme().UnsafeConvertToVersion(obj, exactly(gvk))
	if err != nil {
		return nil, fmt.Errorf("converting %T to %s: %w", obj, gvk, err)
	}
	if gvk.Version != runtime.APIVersionInternal {
		out.GetObjectKind().SetGroupVersionKind(gvk)
	}
	return out, nil
}

// Default sets the defaults of obj's own version, as decoding a request does.
// It does nothing to internal versions.
func Default(obj runtime.Object) { Scheme().Default(obj) }

// exactly is the GroupVersioner that accepts one kind only. A type such as
// Event lives in several groups: a versioner made from a GroupVersion would
// choose by order of registration.
type exactly schema.GroupVersionKind

func (e exactly) KindForGroupVersionKinds(kinds []schema.GroupVersionKind) (schema.GroupVersionKind, bool) {
	for _, k := range kinds {
		if k.Kind == e.Kind {
			return schema.GroupVersionKind(e), true
		}
	}
	return schema.GroupVersionKind{}, false
}

func (e exactly) Identifier() string { return schema.GroupVersionKind(e).String() }
