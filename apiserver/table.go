package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition/tableconvertor"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/printers"
	"k8s.io/kubernetes/pkg/printers/internalversion"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
	"edged/apiserver/registry/claims"
)

// printer makes the rows that kubectl get shows, with upstream's printers.
// They cost 3 MB of binary and 0.35 MB of memory.
type printer struct {
	tables *printers.HumanReadableGenerator
	reg    *registry.Registry
}

func newPrinter(r *registry.Registry) *printer {
	return &printer{printers.NewTableGenerator().With(internalversion.AddHandlers, addServiceHandler), r}
}

// rows prints one object of any version. Columns and rows are the caller's.
func (p *printer) rows(obj runtime.Object) (*metav1.Table, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return p.custom(u)
	}
	if class, ok := obj.(*storagev1.StorageClass); ok { // only in a list upstream's printer tells which one is the default
		if d := claims.Default(registry.For[*storagev1.StorageClass](p.reg).List("")); d != nil && d.Name == class.Name {
			obj = &storagev1.StorageClassList{Items: []storagev1.StorageClass{*class}}
		}
	}
	internal, err := codec.ToInternal(obj)
	if definition, ok := internal.(*apiextensions.CustomResourceDefinition); ok {
		return definitionTables.ConvertToTable(context.Background(), definition, nil)
	}
	if err == nil {
		t, err := p.tables.GenerateTable(internal, printers.GenerateOptions{Wide: true})
		if err == nil {
			return t, nil
		}
	}
	return defaultTable(obj)
}

// definitionTables are upstream's for CustomResourceDefinitions, which its printers do
// not know.
var definitionTables = tableconvertor.New()

// custom prints an object that a CustomResourceDefinition describes.
func (p *printer) custom(u *unstructured.Unstructured) (*metav1.Table, error) {
	gvk := u.GroupVersionKind()
	for _, k := range p.reg.Kinds() {
		if k.Custom == nil || k.GVK.GroupKind() != gvk.GroupKind() {
			continue
		}
		if d, ok := k.Custom.(described); ok {
			return d.Table(context.Background(), u, gvk.Version)
		}
	}
	return defaultTable(u)
}

// defaultTable is for kinds without a printer: name and age, as upstream's
// rest.NewDefaultTableConvertor.
func defaultTable(obj runtime.Object) (*metav1.Table, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	docs := metav1.ObjectMeta{}.SwaggerDoc()
	return &metav1.Table{
		ColumnDefinitions: []metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Format: "name", Description: docs["name"]},
			{Name: "Created At", Type: "date", Description: docs["creationTimestamp"]},
		},
		Rows: []metav1.TableRow{{
			Cells: []any{m.GetName(), m.GetCreationTimestamp().Time.UTC().Format(time.RFC3339)},
		}},
	}, nil
}

// columns are those of the kind of obj, an empty object.
func (p *printer) columns(obj runtime.Object) ([]metav1.TableColumnDefinition, error) {
	t, err := p.rows(obj)
	if err != nil {
		return nil, err
	}
	return t.ColumnDefinitions, nil
}

// row prints obj with what includeObject asks for beside the cells.
func (p *printer) row(out output, obj runtime.Object) (*metav1.Table, error) {
	t, err := p.rows(obj)
	if err != nil {
		return nil, err
	}
	for i := range t.Rows {
		if err := attach(out, &t.Rows[i], obj); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func attach(out output, row *metav1.TableRow, obj runtime.Object) error {
	row.Object = runtime.RawExtension{}
	switch out.include {
	case metav1.IncludeObject:
		raw, err := json.Marshal(obj)
		row.Object.Raw = raw
		return err
	case metav1.IncludeNone:
		return nil
	}
	partial, err := partialMetadata(obj, out.convert.GroupVersion().String())
	if err != nil {
		return err
	}
	row.Object.Raw, err = json.Marshal(partial)
	return err
}

// partialMetadata is the metadata of obj as an object of its own.
func partialMetadata(obj runtime.Object, apiVersion string) (*metav1.PartialObjectMetadata, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		out := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: apiVersion}}
		m, _ := u.Object["metadata"].(map[string]any)
		return out, runtime.DefaultUnstructuredConverter.FromUnstructured(m, &out.ObjectMeta)
	}
	m, ok := obj.(metav1.ObjectMetaAccessor)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	om, ok := m.GetObjectMeta().(*metav1.ObjectMeta)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: apiVersion},
		ObjectMeta: *om,
	}, nil
}

// table is a Table of one object.
func (p *printer) table(out output, obj runtime.Object) (*metav1.Table, error) {
	t, err := p.row(out, obj)
	if err != nil {
		return nil, err
	}
	t.TypeMeta = metav1.TypeMeta{Kind: "Table", APIVersion: out.convert.GroupVersion().String()}
	if m, err := meta.Accessor(obj); err == nil {
		t.ResourceVersion = m.GetResourceVersion()
	}
	return t, nil
}

// includeObject reads the only option that tables have.
func includeObject(req *http.Request) (metav1.IncludeObjectPolicy, error) {
	switch v := metav1.IncludeObjectPolicy(req.URL.Query().Get("includeObject")); v {
	case "":
		return metav1.IncludeMetadata, nil
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return v, nil
	default:
		return "", apierrors.NewBadRequest(fmt.Sprintf(
			"Unable to convert to Table as requested: includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", v))
	}
}
