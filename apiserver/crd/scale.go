package crd

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

var scaleKind = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

// scaleSubresource shows an object's replicas, as the version that the object
// is stored in says where they are.
func scaleSubresource(m *model) *registry.Subresource {
	s := scaler{m}
	return &registry.Subresource{
		Projection: &registry.Projection{Get: s.get, Set: s.set, Path: s.replicas},
		GVK:        scaleKind,
		New:        func() runtime.Object { return new(autoscalingv1.Scale) },
		Verbs:      []string{"get", "patch", "update"},
	}
}

type scaler struct{ model *model }

// paths are those of the object's version.
func (s scaler) paths(obj runtime.Object) (*unstructured.Unstructured, *apiextensionsv1.CustomResourceSubresourceScale, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, nil, fmt.Errorf("%T has no scale", obj)
	}
	v := s.model.version(u.GroupVersionKind().Version)
	if v == nil || v.Subresources == nil || v.Subresources.Scale == nil {
		return nil, nil, apierrors.NewInternalError(fmt.Errorf("version %s of %s has no scale", u.GroupVersionKind().Version, s.model.kind))
	}
	return u, v.Subresources.Scale, nil
}

// replicas is where the objects of a version have them.
func (s scaler) replicas(version string) ([]string, error) {
	v := s.model.version(version)
	if v == nil || v.Subresources == nil || v.Subresources.Scale == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("version %s of %s has no scale", version, s.model.kind))
	}
	return path(v.Subresources.Scale.SpecReplicasPath), nil
}

func (s scaler) get(obj runtime.Object) (runtime.Object, error) {
	u, paths, err := s.paths(obj)
	if err != nil {
		return nil, err
	}
	replicas, found, err := unstructured.NestedInt64(u.Object, path(paths.SpecReplicasPath)...)
	if err == nil && !found {
		err = fmt.Errorf("the spec replicas field %q does not exist", paths.SpecReplicasPath)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	current, _, err := unstructured.NestedInt64(u.Object, path(paths.StatusReplicasPath)...)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	selector := ""
	if paths.LabelSelectorPath != nil {
		if selector, _, err = unstructured.NestedString(u.Object, path(*paths.LabelSelectorPath)...); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	scale := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: u.GetName(), Namespace: u.GetNamespace(), UID: u.GetUID(),
			ResourceVersion: u.GetResourceVersion(), CreationTimestamp: u.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: int32(replicas)},
		Status: autoscalingv1.ScaleStatus{Replicas: int32(current), Selector: selector},
	}
	scale.SetGroupVersionKind(scaleKind)
	return scale, nil
}

func (s scaler) set(_ context.Context, obj, projected runtime.Object) error {
	u, paths, err := s.paths(obj)
	if err != nil {
		return err
	}
	v1, err := codec.ToVersion(projected, scaleKind)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("wrong object passed to Scale update: %v", projected))
	}
	replicas := v1.(*autoscalingv1.Scale).Spec.Replicas
	if replicas < 0 {
		errs := field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), replicas, "should be a non-negative integer")}
		return apierrors.NewInvalid(scaleKind.GroupKind(), u.GetName(), errs)
	}
	if err := unstructured.SetNestedField(u.Object, int64(replicas), path(paths.SpecReplicasPath)...); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}
