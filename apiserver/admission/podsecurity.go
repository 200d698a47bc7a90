package admission

import (
	"context"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/warning"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"edged/apiserver/registry"
)

// podSecurity holds the Pod Security Standards that a namespace's labels ask
// for. Without labels everything is allowed, as upstream's default.
type podSecurity struct {
	validateOnly
	evaluator  policy.Evaluator
	defaults   podsecurity.Policy
	namespaces registry.Client[*corev1.Namespace]
	pods       registry.Client[*corev1.Pod]
}

func newPodSecurity(r *registry.Registry) (*podSecurity, error) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, fmt.Errorf("pod security checks: %w", err)
	}
	privileged := podsecurity.LevelVersion{Level: podsecurity.LevelPrivileged, Version: podsecurity.LatestVersion()}
	return &podSecurity{
		evaluator:  evaluator,
		defaults:   podsecurity.Policy{Enforce: privileged, Audit: privileged, Warn: privileged},
		namespaces: registry.For[*corev1.Namespace](r),
		pods:       registry.For[*corev1.Pod](r),
	}, nil
}

func (p *podSecurity) Validate(ctx context.Context, a *registry.Attributes) error {
	if a.Operation != create && a.Operation != update {
		return nil
	}
	switch obj := a.Object.(type) {
	case *corev1.Namespace:
		if a.Subresource == "" {
			return p.validateNamespace(ctx, a, obj)
		}
	case *corev1.Pod:
		if a.Subresource == "" || a.Subresource == "ephemeralcontainers" {
			return p.validatePod(ctx, a, obj)
		}
	default:
		if meta, spec := templateOf(a.Object); spec != nil && a.Subresource == "" {
			p.warn(ctx, p.policyOf(a.Namespace), meta, spec)
		}
	}
	return nil
}

// templateOf is the Pod template of a kind that has one at spec.template, or,
// for CronJobs, at spec.jobTemplate.spec.template.
func templateOf(obj runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	v := reflect.ValueOf(obj)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, nil
	}
	for _, path := range [][]string{{"Spec", "Template"}, {"Spec", "JobTemplate", "Spec", "Template"}, {"Template"}} {
		f := v.Elem()
		for _, name := range path {
			if f.Kind() == reflect.Pointer {
				f = f.Elem()
			}
			if f.Kind() != reflect.Struct {
				f = reflect.Value{}
				break
			}
			f = f.FieldByName(name)
		}
		if !f.IsValid() {
			continue
		}
		if f.Kind() != reflect.Pointer {
			if !f.CanAddr() {
				continue
			}
			f = f.Addr()
		}
		if t, ok := f.Interface().(*corev1.PodTemplateSpec); ok && t != nil {
			return &t.ObjectMeta, &t.Spec
		}
	}
	return nil, nil
}

func (p *podSecurity) policyOf(namespace string) podsecurity.Policy {
	ns, ok := p.namespaces.Get("", namespace)
	if !ok {
		return p.defaults
	}
	// Labels that do not parse count as the strictest level they can mean.
	level, _ := podsecurity.PolicyToEvaluate(ns.Labels, p.defaults)
	return level
}

func (p *podSecurity) validatePod(ctx context.Context, a *registry.Attributes, pod *corev1.Pod) error {
	level := p.policyOf(a.Namespace)
	if level.FullyPrivileged() {
		return nil
	}
	if old, ok := a.OldObject.(*corev1.Pod); ok && !significant(pod, old) {
		return nil
	}
	result := p.evaluate(level.Enforce, &pod.ObjectMeta, &pod.Spec)
	if !result.Allowed {
		return forbidden(a, fmt.Errorf("violates PodSecurity %q: %s", level.Enforce.String(), result.ForbiddenDetail()))
	}
	p.warn(ctx, level, &pod.ObjectMeta, &pod.Spec)
	return nil
}

func (p *podSecurity) evaluate(level podsecurity.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) policy.AggregateCheckResult {
	return policy.AggregateCheckResults(p.evaluator.EvaluatePod(level, meta, spec))
}

func (p *podSecurity) warn(ctx context.Context, level podsecurity.Policy, meta *metav1.ObjectMeta, spec *corev1.PodSpec) {
	if level.Warn.Level == podsecurity.LevelPrivileged {
		return
	}
	if result := p.evaluate(level.Warn, meta, spec); !result.Allowed {
		warning.AddWarning(ctx, "", fmt.Sprintf("would violate PodSecurity %q: %s", level.Warn.String(), result.ForbiddenDetail()))
	}
}

// significant: what an update of a Pod may change and a policy may mind.
func significant(pod, old *corev1.Pod) bool {
	return !sameContainers(pod.Spec.Containers, old.Spec.Containers) ||
		!sameContainers(pod.Spec.InitContainers, old.Spec.InitContainers) ||
		!equality.Semantic.DeepEqual(pod.Spec.EphemeralContainers, old.Spec.EphemeralContainers)
}

func sameContainers(a, b []corev1.Container) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Image != b[i].Image || !equality.Semantic.DeepEqual(a[i].SecurityContext, b[i].SecurityContext) {
			return false
		}
	}
	return true
}

// validateNamespace wants valid labels, and tells who tightens a namespace
// which of its Pods would no longer be let in.
func (p *podSecurity) validateNamespace(ctx context.Context, a *registry.Attributes, ns *corev1.Namespace) error {
	next, errs := podsecurity.PolicyToEvaluate(ns.Labels, p.defaults)
	old, ok := a.OldObject.(*corev1.Namespace)
	if !ok {
		if len(errs) > 0 {
			return apierrors.NewInvalid(namespaceKind, nameOf(a), errs)
		}
		return nil
	}
	prev, oldErrs := podsecurity.PolicyToEvaluate(old.Labels, p.defaults)
	if len(errs) > 0 && !reflect.DeepEqual(errs, oldErrs) {
		return apierrors.NewInvalid(namespaceKind, nameOf(a), errs)
	}
	if next.Enforce == prev.Enforce || next.Enforce.Level == podsecurity.LevelPrivileged ||
		next.Enforce.Version == prev.Enforce.Version && podsecurity.CompareLevels(next.Enforce.Level, prev.Enforce.Level) < 1 {
		return nil
	}
	for _, pod := range p.pods.List(ns.Name) {
		if result := p.evaluate(next.Enforce, &pod.ObjectMeta, &pod.Spec); !result.Allowed {
			warning.AddWarning(ctx, "", fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", ns.Name, next.Enforce.String()))
			warning.AddWarning(ctx, "", fmt.Sprintf("%s: %s", pod.Name, result.ForbiddenReason()))
		}
	}
	return nil
}

var namespaceKind = schema.GroupKind{Kind: "Namespace"}
