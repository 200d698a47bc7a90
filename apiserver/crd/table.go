package crd

import (
	"context"
	"fmt"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
)

// Table prints obj, of the given version, in the columns that the definition
// names; a definition without any shows the age.
func (m *model) Table(ctx context.Context, obj runtime.Object, versionName string) (*metav1.Table, error) {
	var columns []apiextensionsv1.CustomResourceColumnDefinition
	if v := m.version(versionName); v != nil {
		columns = v.AdditionalPrinterColumns
	}
	if len(columns) == 0 {
		columns = []apiextensionsv1.CustomResourceColumnDefinition{{
			Name: "Age", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"], JSONPath: ".metadata.creationTimestamp",
		}}
	}
	c, err := tableconvertor.New(columns)
	if err != nil {
		m.logger.Debug("a definition's columns cannot be printed", "crd", m.crd.Name, "err", err)
	}
	return c.ConvertToTable(ctx, obj, nil)
}

// Deprecated is the warning that goes with every answer in the version; "" is
// none.
func (m *model) Deprecated(versionName string) string {
	v := m.version(versionName)
	if v == nil || !v.Deprecated {
		return ""
	}
	if v.DeprecationWarning != nil {
		return *v.DeprecationWarning
	}
	msg := fmt.Sprintf("%s/%s %s is deprecated", m.group, versionName, m.kind)
	var newer []string
	for _, o := range m.crd.Spec.Versions {
		if o.Served && !o.Deprecated && version.CompareKubeAwareVersionStrings(versionName, o.Name) < 0 {
			newer = append(newer, o.Name)
		}
	}
	if len(newer) == 0 {
		return msg
	}
	best := slices.MaxFunc(newer, version.CompareKubeAwareVersionStrings)
	return msg + fmt.Sprintf("; use %s %s", schema.GroupVersion{Group: m.group, Version: best}, m.kind)
}

// HasSubresource reports whether the version has a subresource that another
// version of the kind may have alone.
func (m *model) HasSubresource(versionName, name string) bool {
	v := m.version(versionName)
	if v == nil || v.Subresources == nil {
		return false
	}
	return name == "status" && v.Subresources.Status != nil || name == "scale" && v.Subresources.Scale != nil
}
