package registry

import (
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// applyThrough makes the apply of a projected object, a Scale, one of the object
// itself: of the fields that the projection shows, and as the subresource's. That is
// what upstream's ScaleHandler comes to: the field is owned, and contested, under the
// object's own path.
func (p *patcher) applyThrough(projection *Projection, name string) error {
	data, err := yaml.YAMLToJSON(p.patch)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	var scale autoscalingv1.Scale
	unknown, err := strictjson.UnmarshalStrict(data, &scale, strictjson.DisallowUnknownFields)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if gvk := scale.GroupVersionKind(); gvk != p.gvk {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid object type: %v", gvk))
	}
	for _, e := range unknown {
		f := strings.Trim(strings.TrimPrefix(e.Error(), "unknown field "), `"`)
		return fmt.Errorf("failed to create typed patch object (%s/%s; %s): .%s: field not declared in schema", scale.Namespace, scale.Name, p.gvk, f)
	}
	if len(scale.ManagedFields) > 0 {
		return apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	if err := checkName(&scale, p.c.ns, name, p.c); err != nil {
		return err
	}
	if scale.Spec.Replicas < 0 {
		errs := field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0")}
		return apierrors.NewInvalid(p.gvk.GroupKind(), name, errs)
	}
	gvk := schema.GroupVersionKind{Group: p.c.kind.GVK.Group, Version: p.c.version(), Kind: p.c.kind.GVK.Kind}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	u.SetName(name)
	u.SetNamespace(p.c.ns)
	u.SetResourceVersion(scale.ResourceVersion)
	u.SetUID(scale.UID)
	var given struct {
		Spec struct {
			Replicas *int64 `json:"replicas"`
		} `json:"spec"`
	}
	if err := strictjson.UnmarshalCaseSensitivePreserveInts(data, &given); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if n := given.Spec.Replicas; n != nil {
		path := []string{"spec", "replicas"}
		if projection.Path != nil {
			if path, err = projection.Path(gvk.Version); err != nil {
				return err
			}
		}
		if err := unstructured.SetNestedField(u.Object, *n, path...); err != nil {
			return apierrors.NewInternalError(err)
		}
	}
	p.gvk = gvk
	p.patch, err = u.MarshalJSON()
	return err
}
