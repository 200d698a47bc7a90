package crd

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	celmodel "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metavalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"edged/apiserver/registry"
)

// strategy follows pkg/registry/customresource. Objects come in the storage
// version; what they must pass is the schema of the version that the request
// is made in.
type strategy struct{ model *model }

func (s *strategy) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return typer{}.ObjectKinds(obj)
}
func (*strategy) Recognizes(schema.GroupVersionKind) bool { return true }
func (*strategy) GenerateName(base string) string {
	return names.SimpleNameGenerator.GenerateName(base)
}
func (*strategy) Canonicalize(runtime.Object)                   {}
func (*strategy) AllowCreateOnUpdate(context.Context) bool      { return false }
func (*strategy) AllowUnconditionalUpdate(context.Context) bool { return false }
func (s *strategy) NamespaceScoped() bool {
	return s.model.crd.Spec.Scope == apiextensionsv1.NamespaceScoped
}

// GetResetFields says for server-side apply what updates reset.
func (s *strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	out := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, v := range s.model.crd.Spec.Versions {
		if v.Subresources != nil && v.Subresources.Status != nil {
			out[fieldpath.APIVersion(s.model.group+"/"+v.Name)] = fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
		}
	}
	return out
}

// requested is the version that the request is made in.
func (s *strategy) requested(ctx context.Context) *apiextensionsv1.CustomResourceDefinitionVersion {
	if info, ok := request.RequestInfoFrom(ctx); ok && info.APIGroup == s.model.group {
		if v := s.model.version(info.APIVersion); v != nil {
			return v
		}
	}
	return s.model.version(s.model.storage)
}

func hasStatus(v *apiextensionsv1.CustomResourceDefinitionVersion) bool {
	return v.Subresources != nil && v.Subresources.Status != nil
}

func (s *strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	u := obj.(*unstructured.Unstructured)
	if hasStatus(s.requested(ctx)) {
		delete(u.Object, "status")
	}
	u.SetGeneration(1)
}

func (s *strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	u, was := obj.(*unstructured.Unstructured), old.(*unstructured.Unstructured)
	if hasStatus(s.requested(ctx)) {
		if status, ok := was.Object["status"]; ok {
			u.Object["status"] = status
		} else {
			delete(u.Object, "status")
		}
	}
	if !equality.Semantic.DeepEqual(withoutMetadata(u), withoutMetadata(was)) {
		u.SetGeneration(was.GetGeneration() + 1)
	}
}

func withoutMetadata(u *unstructured.Unstructured) map[string]any {
	out := maps.Clone(u.Object)
	delete(out, "metadata")
	return out
}

// subject is an object in the version it is validated in, with what it must
// pass.
type subject struct {
	obj, old   *unstructured.Unstructured
	version    *apiextensionsv1.CustomResourceDefinitionVersion
	structural *structuralschema.Structural
	validators *validators
}

func (s *strategy) subject(ctx context.Context, obj, old runtime.Object) (*subject, field.ErrorList) {
	v := s.requested(ctx)
	gv := schema.GroupVersion{Group: s.model.group, Version: v.Name}
	out := &subject{version: v, structural: s.model.schemaOf(v.Name)}
	converted, err := s.model.Convert(obj, gv)
	if err == nil {
		out.obj = converted.(*unstructured.Unstructured)
		if old != nil {
			if converted, err = s.model.Convert(old, gv); err == nil {
				out.old = converted.(*unstructured.Unstructured)
			}
		}
	}
	if err == nil {
		out.validators, err = s.model.validatorsOf(v.Name)
	}
	if err != nil {
		return nil, field.ErrorList{field.InternalError(nil, err)}
	}
	return out, nil
}

func (s *strategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	sub, errs := s.subject(ctx, obj, nil)
	if errs != nil {
		return errs
	}
	errs = append(errs, s.validateMeta(sub)...)
	errs = append(errs, validation.ValidateCustomResource(nil, sub.obj.Object, sub.validators.schema)...)
	errs = append(errs, validateScale(sub, true)...)
	errs = append(errs, objectmeta.Validate(ctx, nil, sub.obj.Object, sub.structural, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, sub.structural, sub.obj.Object)...)
	return append(errs, sub.rules(ctx, errs)...)
}

func (s *strategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	sub, errs := s.subject(ctx, obj, old)
	if errs != nil {
		return errs
	}
	correlated := common.NewCorrelatedObject(sub.obj.Object, sub.old.Object, &celmodel.Structural{Structural: sub.structural})
	errs = append(errs, s.validateMeta(sub)...)
	errs = append(errs, validation.ValidateCustomResourceUpdate(nil, sub.obj.Object, sub.old.Object, sub.validators.schema, validation.WithRatcheting(correlated))...)
	errs = append(errs, validateScale(sub, true)...)
	errs = append(errs, objectmeta.Validate(ctx, nil, sub.obj.Object, sub.structural, false)...)
	if len(listtype.ValidateListSetsAndMaps(nil, sub.structural, sub.old.Object)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, sub.structural, sub.obj.Object)...)
	}
	return append(errs, sub.rules(ctx, errs, cel.WithRatcheting(correlated))...)
}

// rules evaluates x-kubernetes-validations, unless the object is too wrong for
// them to mean anything.
func (sub *subject) rules(ctx context.Context, so field.ErrorList, opts ...cel.Option) field.ErrorList {
	if sub.validators.rules == nil {
		return nil
	}
	for _, e := range so {
		switch e.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return field.ErrorList{field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")}
		}
	}
	var old any
	if sub.old != nil {
		old = sub.old.Object
	}
	errs, _ := sub.validators.rules.Validate(ctx, nil, sub.structural, sub.obj.Object, old, celconfig.RuntimeCELCostBudget, opts...)
	return errs
}

func (s *strategy) validateMeta(sub *subject) field.ErrorList {
	var errs field.ErrorList
	if got := sub.obj.GetKind(); got != s.model.kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), got, fmt.Sprintf("must be %v", s.model.kind)))
	}
	om, err := metadataOf(sub.obj)
	if err != nil {
		return append(errs, err)
	}
	if sub.old == nil {
		return append(errs, metavalidation.ValidateObjectMeta(om, s.NamespaceScoped(), metavalidation.NameIsDNSSubdomain, field.NewPath("metadata"))...)
	}
	was, err := metadataOf(sub.old)
	if err != nil {
		return append(errs, err)
	}
	return append(errs, metavalidation.ValidateObjectMetaUpdate(om, was, field.NewPath("metadata"))...)
}

func metadataOf(u *unstructured.Unstructured) (*metav1.ObjectMeta, *field.Error) {
	om := &metav1.ObjectMeta{}
	m, _ := u.Object["metadata"].(map[string]any)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(m, om); err != nil {
		return nil, field.Invalid(field.NewPath("metadata"), m, err.Error())
	}
	return om, nil
}

func path(jsonPath string) []string { return strings.Split(strings.TrimPrefix(jsonPath, "."), ".") }

// validateScale looks at what the scale subresource will read.
func validateScale(sub *subject, spec bool) field.ErrorList {
	if sub.version.Subresources == nil || sub.version.Subresources.Scale == nil {
		return nil
	}
	scale := sub.version.Subresources.Scale
	var errs field.ErrorList
	number := func(at string) {
		n, _, err := unstructured.NestedInt64(sub.obj.Object, path(at)...)
		switch p := field.NewPath(at); {
		case err != nil:
			errs = append(errs, field.Invalid(p, n, err.Error()))
		case n < 0:
			errs = append(errs, field.Invalid(p, n, "should be a non-negative integer"))
		case n > math.MaxInt32:
			errs = append(errs, field.Invalid(p, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if spec {
		number(scale.SpecReplicasPath)
	}
	number(scale.StatusReplicasPath)
	if scale.LabelSelectorPath != nil {
		if v, _, err := unstructured.NestedString(sub.obj.Object, path(*scale.LabelSelectorPath)...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*scale.LabelSelectorPath), v, err.Error()))
		}
	}
	return errs
}

func (*strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return finalizerWarnings(obj.(*unstructured.Unstructured).GetFinalizers(), nil)
}

func (*strategy) WarningsOnUpdate(_ context.Context, obj, old runtime.Object) []string {
	return finalizerWarnings(obj.(*unstructured.Unstructured).GetFinalizers(), old.(*unstructured.Unstructured).GetFinalizers())
}

// finalizerWarnings are upstream's for finalizers that others might use too.
func finalizerWarnings(now, was []string) []string {
	var out []string
	for _, f := range slices.Sorted(slices.Values(now)) {
		if slices.Contains(was, f) {
			continue
		}
		for _, msg := range utilvalidation.IsQualifiedName(f) {
			out = append(out, fmt.Sprintf("metadata.finalizers: %q: %s", f, msg))
		}
		standard := f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents || f == string(corev1.FinalizerKubernetes)
		if strings.Contains(f, "/") || standard {
			continue
		}
		including := ""
		if strings.Contains(f, ".") {
			including = " including a path (/)"
		}
		out = append(out, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name%s to avoid accidental conflicts with other finalizer writers", f, including))
	}
	return out
}

// statusStrategy is for the status subresource.
type statusStrategy struct{ strategy }

func (s *statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	out := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, v := range s.model.crd.Spec.Versions {
		out[fieldpath.APIVersion(s.model.group+"/"+v.Name)] = fieldpath.NewSet(fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("spec"))
	}
	return out
}

// PrepareForUpdate takes the status, and who set it, into the old object.
func (s *statusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	u := obj.(*unstructured.Unstructured)
	status, ok := u.Object["status"]
	managed := u.GetManagedFields()
	u.Object = old.(*unstructured.Unstructured).DeepCopy().Object
	u.SetManagedFields(managed)
	if ok {
		u.Object["status"] = status
	} else {
		delete(u.Object, "status")
	}
}

func (s *statusStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	sub, errs := s.subject(ctx, obj, old)
	if errs != nil {
		return errs
	}
	correlated := common.NewCorrelatedObject(sub.obj.Object, sub.old.Object, &celmodel.Structural{Structural: sub.structural})
	errs = append(errs, s.validateMeta(sub)...)
	if status, ok := sub.obj.Object["status"]; ok {
		var opts []validation.ValidationOption
		if sub.structural != nil {
			opts = append(opts, validation.WithRatcheting(correlated.Key("status")))
		}
		errs = append(errs, validation.ValidateCustomResourceUpdate(field.NewPath("status"), status, sub.old.Object["status"], sub.validators.status, opts...)...)
	}
	errs = append(errs, validateScale(sub, false)...)
	if now := listtype.ValidateListSetsAndMaps(nil, sub.structural, sub.obj.Object); len(now) > 0 && len(listtype.ValidateListSetsAndMaps(nil, sub.structural, sub.old.Object)) == 0 {
		errs = append(errs, now...)
	}
	return append(errs, sub.rules(ctx, errs, cel.WithRatcheting(correlated))...)
}

func (*statusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// onlyWhileDefined ties a new object's transaction to its definition: none can
// be made that whoever empties a definition would not see.
func onlyWhileDefined(crd *apiextensionsv1.CustomResourceDefinition) func(tx *registry.Tx, old, obj runtime.Object) error {
	definitions := apiextensionsv1.Resource("customresourcedefinitions")
	resource := schema.GroupResource{Group: crd.Spec.Group, Resource: crd.Status.AcceptedNames.Plural}
	return func(tx *registry.Tx, old, obj runtime.Object) error {
		if old != nil || obj == nil {
			return nil
		}
		now, ok := tx.Get(definitions, "", crd.Name)
		if !ok || now.(*apiextensionsv1.CustomResourceDefinition).UID != crd.UID {
			return apierrors.NewNotFound(resource, "")
		}
		if now.(*apiextensionsv1.CustomResourceDefinition).DeletionTimestamp != nil {
			return apierrors.NewMethodNotSupported(resource, "create")
		}
		return nil
	}
}
