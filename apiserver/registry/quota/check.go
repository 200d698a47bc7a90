package quota

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Object is an object and its resource.
type Object struct {
	Resource schema.GroupResource
	Object   runtime.Object
}

// Covers reports whether the quota, with these limits, is about the object.
func Covers(q *corev1.ResourceQuota, hard corev1.ResourceList, o Object) bool {
	return inScopes(q, o.Object) && len(matching(o.Resource, hard)) > 0
}

// Check asks whether the quota has room for an object that is about to be made,
// or changed from old. It returns what will be used then, nil if that is what it
// was.
func Check(q *corev1.ResourceQuota, o Object, old runtime.Object, now time.Time) (corev1.ResourceList, error) {
	if !Covers(q, q.Status.Hard, o) {
		return nil, nil
	}
	restricted := matching(o.Resource, q.Status.Hard)
	slices.Sort(restricted)
	if pod, ok := o.Object.(*corev1.Pod); ok {
		if err := specified(pod, restricted); err != nil {
			return nil, fmt.Errorf("failed quota: %s: %w", q.Name, err)
		}
	}
	for _, name := range restricted {
		if _, ok := q.Status.Used[name]; !ok {
			return nil, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, join(restricted))
		}
	}
	delta := Usage(o.Resource, o.Object, now)
	if name, negative := firstNegative(delta); negative {
		return nil, fmt.Errorf("quota usage is negative for resource(s): %s", name)
	}
	if old != nil && Covers(q, q.Status.Hard, Object{o.Resource, old}) {
		delta = increase(delta, Usage(o.Resource, old, now))
	}
	return charge(q, delta, restricted)
}

// charge adds what is asked for to what is used.
func charge(q *corev1.ResourceQuota, delta corev1.ResourceList, restricted []corev1.ResourceName) (corev1.ResourceList, error) {
	used := q.Status.Used.DeepCopy()
	asked := corev1.ResourceList{}
	var exceeded []corev1.ResourceName
	for _, name := range restricted {
		q1, ok := delta[name]
		if !ok || q1.IsZero() {
			continue
		}
		asked[name] = q1
		sum := used[name]
		sum.Add(q1)
		used[name] = sum
		if hard := q.Status.Hard[name]; sum.Cmp(hard) > 0 {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) > 0 {
		return nil, fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s",
			q.Name, list(asked, exceeded), list(q.Status.Used, exceeded), list(q.Status.Hard, exceeded))
	}
	if len(asked) == 0 {
		return nil, nil
	}
	return used, nil
}

// mustBeSpecified are the resources that every container has to name if a quota
// limits them: a mistake that upstream keeps.
var mustBeSpecified = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
}

func specified(p *corev1.Pod, restricted []corev1.ResourceName) error {
	if resourcehelper.IsPodLevelResourcesSet(p) {
		return nil
	}
	var missing []string
	for _, name := range restricted {
		if !slices.Contains(mustBeSpecified, name) {
			continue
		}
		var without []string
		for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
			has := corev1.ResourceList{}
			computeUsage(has, c.Resources.Requests, c.Resources.Limits)
			if _, ok := has[name]; !ok {
				without = append(without, c.Name)
			}
		}
		if len(without) > 0 {
			slices.Sort(without)
			missing = append(missing, fmt.Sprintf("%s for: %s", name, strings.Join(without, ",")))
		}
	}
	if len(missing) > 0 {
		return errors.New("must specify " + strings.Join(missing, "; "))
	}
	return nil
}

func firstNegative(l corev1.ResourceList) (corev1.ResourceName, bool) {
	for name, q := range l {
		if q.Sign() < 0 {
			return name, true
		}
	}
	return "", false
}

// increase is by how much now is more than before; what is less is given back
// by the controller.
func increase(now, before corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, q := range now {
		more := q.DeepCopy()
		if b, ok := before[name]; ok {
			more.Sub(b)
		}
		if more.Sign() > 0 {
			out[name] = more
		}
	}
	return out
}

func join(names []corev1.ResourceName) string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = string(n)
	}
	slices.Sort(s)
	return strings.Join(s, ",")
}

// list is "cpu=1,memory=2Gi" of some of the resources.
func list(l corev1.ResourceList, names []corev1.ResourceName) string {
	var s []string
	for _, n := range names {
		q := l[n]
		s = append(s, fmt.Sprintf("%s=%s", n, q.String()))
	}
	slices.Sort(s)
	return strings.Join(s, ",")
}

// Total is what the objects use of what the quota limits.
func Total(q *corev1.ResourceQuota, objects []Object, now time.Time) corev1.ResourceList {
	used := corev1.ResourceList{}
	for name, hard := range q.Spec.Hard {
		used[name] = resource.Quantity{Format: hard.Format}
	}
	for _, o := range objects {
		if !Covers(q, q.Spec.Hard, o) {
			continue
		}
		use := Usage(o.Resource, o.Object, now)
		for _, name := range matching(o.Resource, q.Spec.Hard) {
			if more, ok := use[name]; ok {
				sum := used[name]
				sum.Add(more)
				used[name] = sum
			}
		}
	}
	return used
}

// Limits reports whether the quota is about objects of the resource at all.
func Limits(q *corev1.ResourceQuota, gr schema.GroupResource) bool {
	return len(matching(gr, q.Spec.Hard)) > 0
}

// Equal compares amounts.
func Equal(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, x := range a {
		if y, ok := b[name]; !ok || x.Cmp(y) != 0 {
			return false
		}
	}
	return true
}
