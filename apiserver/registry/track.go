package registry

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

// trackCreate sets the managedFields of a new object. They are kept only from
// an object's first server-side apply on: tracking every writer costs as much
// memory and flash as the object.
func (r *Registry) trackCreate(_ *call, obj runtime.Object, _ string) (runtime.Object, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	m.SetManagedFields(nil)
	return obj, nil
}

// trackUpdate sets the managedFields of a changed object.
func (r *Registry) trackUpdate(_ *call, old, obj runtime.Object, _ string) (runtime.Object, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	was, err := meta.Accessor(old)
	if err != nil {
		return nil, err
	}
	m.SetManagedFields(was.GetManagedFields())
	return obj, nil
}
