package kinds

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/pod"
	appsapi "k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/apps/validation"

	"edged/apiserver/registry"
)

func replicaSets() *registry.Kind {
	s := replicaSetStrategy{newBase(true).resets("apps/v1", "status")}
	k := inAll(row[appsv1.ReplicaSet, appsv1.ReplicaSetList](appsv1.SchemeGroupVersion, "replicasets", s, "rs"))
	withScale(k)
	s.base = newBase(true).resets("apps/v1", "spec")
	return withStatus(k, replicaSetStatusStrategy{s})
}

// replicaSetStrategy follows pkg/registry/apps/replicaset.
type replicaSetStrategy struct{ base }

func (replicaSetStrategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.DeleteDependents
}

func (replicaSetStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	rs := obj.(*appsapi.ReplicaSet)
	rs.Status = appsapi.ReplicaSetStatus{}
	rs.Generation = 1
	pod.DropDisabledTemplateFields(&rs.Spec.Template, nil)
}

func (replicaSetStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	rs, was := obj.(*appsapi.ReplicaSet), old.(*appsapi.ReplicaSet)
	rs.Status = was.Status
	pod.DropDisabledTemplateFields(&rs.Spec.Template, &was.Spec.Template)
	if !equality.Semantic.DeepEqual(was.Spec, rs.Spec) {
		rs.Generation = was.Generation + 1
	}
}

func (replicaSetStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	rs := obj.(*appsapi.ReplicaSet)
	return validation.ValidateReplicaSet(rs, pod.GetValidationOptionsFromPodTemplate(&rs.Spec.Template, nil))
}

func (replicaSetStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	rs, was := obj.(*appsapi.ReplicaSet), old.(*appsapi.ReplicaSet)
	return validation.ValidateReplicaSetUpdate(rs, was, pod.GetValidationOptionsFromPodTemplate(&rs.Spec.Template, &was.Spec.Template))
}

func (replicaSetStrategy) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	rs := obj.(*appsapi.ReplicaSet)
	return append(podNameWarnings(rs.Name), pod.GetWarningsForPodTemplate(ctx, field.NewPath("spec", "template"), &rs.Spec.Template, nil)...)
}

func (replicaSetStrategy) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	rs, was := obj.(*appsapi.ReplicaSet), old.(*appsapi.ReplicaSet)
	if rs.Generation == was.Generation {
		return nil
	}
	return pod.GetWarningsForPodTemplate(ctx, field.NewPath("spec", "template"), &rs.Spec.Template, &was.Spec.Template)
}

type replicaSetStatusStrategy struct{ replicaSetStrategy }

func (replicaSetStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*appsapi.ReplicaSet).Spec = old.(*appsapi.ReplicaSet).Spec
}

func (replicaSetStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateReplicaSetStatusUpdate(obj.(*appsapi.ReplicaSet), old.(*appsapi.ReplicaSet))
}

func (replicaSetStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// podNameWarnings warns of a name that makes odd host names of Pods.
func podNameWarnings(name string) []string {
	msgs := utilvalidation.IsDNS1123Label(name)
	if len(msgs) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)}
}
