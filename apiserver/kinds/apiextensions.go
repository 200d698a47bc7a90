package kinds

import (
	"context"
	"fmt"
	"slices"

	api "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"edged/apiserver/openapi"
	"edged/apiserver/registry"
)

// extensions is the kind of the group apiextensions.k8s.io. What a definition
// makes the API serve is apiserver/crd's.
func extensions() []*registry.Kind {
	const apiVersion = "apiextensions.k8s.io/v1"
	k := row[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](apiextensionsv1.SchemeGroupVersion,
		"customresourcedefinitions", definitionStrategy{newBase(false).resets(apiVersion, "status")}, "crd", "crds")
	k.Categories = []string{"api-extensions"}
	k.Prefix = "apiextensions.k8s.io/customresourcedefinitions"
	k.BeforeDelete = terminateDefinition
	k.TypeConverter = converterOf("apis/" + apiVersion)
	return []*registry.Kind{withStatus(k, definitionStatusStrategy{definitionStrategy{newBase(false).resets(apiVersion, "spec")}})}
}

// converterOf makes a kind's type converter of the group version's OpenAPI.
func converterOf(groupVersion string) func() (managedfields.TypeConverter, error) {
	return func() (managedfields.TypeConverter, error) {
		schemas, err := openapi.Schemas(groupVersion)
		if err != nil {
			return nil, err
		}
		return managedfields.NewTypeConverter(schemas, false)
	}
}

// terminateDefinition keeps a definition until its objects are gone.
func terminateDefinition(obj runtime.Object, now metav1.Time) registry.DeleteStep {
	crd := obj.(*apiextensionsv1.CustomResourceDefinition)
	if crd.DeletionTimestamp != nil {
		return registry.DeleteGo
	}
	crd.DeletionTimestamp = &now
	if !slices.Contains(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer) {
		crd.Finalizers = append(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
	}
	conditions := slices.DeleteFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Terminating
	})
	crd.Status.Conditions = append(conditions, apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, LastTransitionTime: now, Reason: "InstanceDeletionPending",
		Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
	})
	return registry.DeleteMark
}

// definitionStrategy follows
// k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition.
type definitionStrategy struct{ base }

func (definitionStrategy) AllowUnconditionalUpdate(context.Context) bool { return false }

func (definitionStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	crd := obj.(*api.CustomResourceDefinition)
	crd.Status = api.CustomResourceDefinitionStatus{}
	crd.Generation = 1
	noteStoredVersion(crd)
}

func (definitionStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	crd, was := obj.(*api.CustomResourceDefinition), old.(*api.CustomResourceDefinition)
	crd.Status = was.Status
	if !equality.Semantic.DeepEqual(was.Spec, crd.Spec) {
		crd.Generation = was.Generation + 1
	}
	noteStoredVersion(crd)
}

// noteStoredVersion remembers in which versions objects may be stored.
func noteStoredVersion(crd *api.CustomResourceDefinition) {
	for _, v := range crd.Spec.Versions {
		if v.Storage && !api.IsStoredVersion(crd, v.Name) {
			crd.Status.StoredVersions = append(crd.Status.StoredVersions, v.Name)
		}
	}
}

func (definitionStrategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateCustomResourceDefinition(ctx, obj.(*api.CustomResourceDefinition))
}

func (definitionStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateCustomResourceDefinitionUpdate(ctx, obj.(*api.CustomResourceDefinition), old.(*api.CustomResourceDefinition))
}

func (definitionStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return schemaWarnings(&obj.(*api.CustomResourceDefinition).Spec)
}

// WarningsOnUpdate tells what is new.
func (definitionStrategy) WarningsOnUpdate(_ context.Context, obj, old runtime.Object) []string {
	known := schemaWarnings(&old.(*api.CustomResourceDefinition).Spec)
	return slices.DeleteFunc(schemaWarnings(&obj.(*api.CustomResourceDefinition).Spec), func(w string) bool { return slices.Contains(known, w) })
}

// schemaWarnings are upstream's, of formats that nobody checks and of sets that
// nobody can merge.
func schemaWarnings(s *api.CustomResourceDefinitionSpec) []string {
	var formats, sets []string
	look := func(p *api.JSONSchemaProps) bool {
		if p.Format != "" {
			one := &spec.Schema{SchemaProps: spec.SchemaProps{Format: p.Format, Type: []string{p.Type}}}
			for _, f := range schemavalidation.GetUnrecognizedFormats(one, environment.DefaultCompatibilityVersion()) {
				formats = append(formats, fmt.Sprintf("unrecognized format %q", f))
			}
		}
		if p.XListType != nil && *p.XListType == "set" && p.Items != nil && p.Items.Schema != nil {
			if t := p.Items.Schema.Type; t == "object" || t == "array" {
				sets = append(sets, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", t))
			}
		}
		return false // go on
	}
	if s.Validation != nil && s.Validation.OpenAPIV3Schema != nil {
		validation.SchemaHas(s.Validation.OpenAPIV3Schema, look)
	}
	for _, v := range s.Versions {
		if v.Schema != nil && v.Schema.OpenAPIV3Schema != nil {
			validation.SchemaHas(v.Schema.OpenAPIV3Schema, look)
		}
	}
	slices.Sort(sets)
	return append(formats, slices.Compact(sets)...)
}

type definitionStatusStrategy struct{ definitionStrategy }

func (definitionStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*api.CustomResourceDefinition).Spec = old.(*api.CustomResourceDefinition).Spec
}

func (definitionStatusStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateUpdateCustomResourceDefinitionStatus(ctx, obj.(*api.CustomResourceDefinition), old.(*api.CustomResourceDefinition))
}

func (definitionStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
