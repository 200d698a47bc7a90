package kinds

//lint:file-ignore SA1019 ConfigSource is deprecated and is dropped here.

import (
	"context"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/features"

	"edged/apiserver/registry"
)

func nodes(cfg Config) *registry.Kind {
	s := nodeStrategy{newBase(false).resets("v1", "status")}
	k := row[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", s, "no")
	k.Prefix = "minions"
	k.Transact = podCIDRs{cfg.ClusterCIDRs}.transact
	k.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"spec.unschedulable": strconv.FormatBool(obj.(*corev1.Node).Spec.Unschedulable)}
	}
	k.SelectableFields = []string{"spec.unschedulable"}
	return withStatus(k, nodeStatusStrategy{nodeStrategy{newBase(false).resets("v1", "spec")}})
}

// nodeStrategy follows pkg/registry/core/node.
type nodeStrategy struct{ base }

func (nodeStrategy) PrepareForCreate(_ context.Context, obj runtime.Object) {
	node := obj.(*api.Node)
	node.Spec.ConfigSource = nil
	node.Status.Config = nil
	dropDisabledNodeFields(node, &api.Node{})
}

func (nodeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	node, was := obj.(*api.Node), old.(*api.Node)
	node.Status = was.Status
	if was.Spec.ConfigSource == nil {
		node.Spec.ConfigSource = nil
	}
	dropDisabledNodeFields(node, was)
}

// dropDisabledNodeFields removes the fields of features that are off, unless
// the object has them already.
func dropDisabledNodeFields(node, was *api.Node) {
	gate := utilfeature.DefaultFeatureGate
	if !gate.Enabled(features.RecursiveReadOnlyMounts) && !gate.Enabled(features.UserNamespacesSupport) {
		node.Status.RuntimeHandlers = nil
	}
	if !gate.Enabled(features.SupplementalGroupsPolicy) && was.Status.Features == nil {
		node.Status.Features = nil
	}
	if !gate.Enabled(features.NodeDeclaredFeatures) && was.Status.DeclaredFeatures == nil {
		node.Status.DeclaredFeatures = nil
	}
	if !gate.Enabled(features.InPlacePodVerticalScalingSchedulerPreemption) && was.Spec.PodPreemptionPolicy == nil {
		node.Spec.PodPreemptionPolicy = nil
	}
}

func (nodeStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateNode(obj.(*api.Node))
}

func (nodeStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	errs := validation.ValidateNode(obj.(*api.Node))
	return append(errs, validation.ValidateNodeUpdate(obj.(*api.Node), old.(*api.Node))...)
}

func (nodeStrategy) DeclarativeValidationConfig(context.Context, runtime.Object, runtime.Object) rest.DeclarativeValidationConfig {
	f := features.InPlacePodVerticalScalingSchedulerPreemption
	return rest.DeclarativeValidationConfig{Options: map[string]bool{string(f): utilfeature.DefaultFeatureGate.Enabled(f)}}
}

func (nodeStrategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	return nodeWarnings(obj.(*api.Node))
}

func (nodeStrategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	return nodeWarnings(obj.(*api.Node))
}

func nodeWarnings(node *api.Node) []string {
	var warnings []string
	if node.Spec.ConfigSource != nil {
		warnings = append(warnings, "spec.configSource: the feature is removed")
	}
	if node.Spec.DoNotUseExternalID != "" {
		warnings = append(warnings, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
	}
	for i, cidr := range node.Spec.PodCIDRs {
		warnings = append(warnings, utilvalidation.GetWarningsForCIDR(field.NewPath("spec", "podCIDRs").Index(i), cidr)...)
	}
	return warnings
}

type nodeStatusStrategy struct{ nodeStrategy }

func (nodeStatusStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	node, was := obj.(*api.Node), old.(*api.Node)
	node.Spec = was.Spec
	if was.Status.Config == nil {
		node.Status.Config = nil
	}
	if !utilfeature.DefaultFeatureGate.Enabled(features.KubeletInUserNamespace) && was.Status.NodeInfo.RunningInUserNamespace == nil {
		node.Status.NodeInfo.RunningInUserNamespace = nil
	}
}

func (nodeStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateNodeUpdate(obj.(*api.Node), old.(*api.Node))
}

func (nodeStatusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}
