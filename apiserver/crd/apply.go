package crd

import (
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"edged/apiserver/openapi"
)

// metaDocument is the smallest document that has the schema of metadata in it.
const metaDocument = "apis/scheduling.k8s.io/v1"

// FieldManager implements registry.Custom: how fields merge is read from the
// schemas of all versions, since an object's fields may be owned in any.
func (m *model) FieldManager(gvk schema.GroupVersionKind, sub string, reset map[fieldpath.APIVersion]fieldpath.Filter) (*managedfields.FieldManager, error) {
	types, err := m.types()
	if err != nil {
		return nil, err
	}
	return managedfields.NewDefaultCRDFieldManager(types, converter{m}, m, creator{}, gvk, gvk.GroupVersion(), sub, reset)
}

// types knows how the fields of all versions merge.
func (m *model) types() (managedfields.TypeConverter, error) {
	models, err := openapi.Schemas(metaDocument)
	if err != nil {
		return nil, err
	}
	for i := range m.crd.Spec.Versions {
		defs, err := m.definitions(m.crd.Spec.Versions[i].Name, v3)
		if err != nil {
			return nil, err
		}
		maps.Copy(models, defs)
	}
	types, err := managedfields.NewTypeConverter(models, m.crd.Spec.PreserveUnknownFields)
	if err != nil {
		return nil, fmt.Errorf("tracking the fields of %s: %w", m.crd.Name, err)
	}
	return types, nil
}

// converter is the model as the field manager wants it.
type converter struct{ model *model }

func (c converter) Convert(in, _, _ any) error {
	return fmt.Errorf("converting %T into a given object is not supported", in)
}

func (c converter) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	from := in.GetObjectKind().GroupVersionKind()
	to, ok := gv.KindForGroupVersionKinds([]schema.GroupVersionKind{from})
	if !ok {
		return nil, fmt.Errorf("%v is unstructured and is not suitable for converting to %q", from, gv)
	}
	if from.GroupVersion() == to.GroupVersion() {
		return in.DeepCopyObject(), nil
	}
	return c.model.Convert(in, to.GroupVersion())
}

func (c converter) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return c.model.FieldLabel(gvk, label, value)
}
