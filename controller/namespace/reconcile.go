package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/controller/foreign"
)

// Order returns the kinds that may be emptied now: Pods alone as long as there
// are any, then all others.
func Order(kinds []*registry.Kind, pods int) []*registry.Kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k *registry.Kind) bool {
		isPod := k.GVK.Group == "" && k.Resource == "pods"
		return !k.Namespaced || !(k.Serves("deletecollection") || k.Serves("delete")) || pods > 0 && !isPod
	})
}

// Remains is what is left in a namespace.
type Remains struct {
	Resources  map[string]int // "pods." and "deployments.apps" to their number
	Finalizers map[string]int
	Failure    error // of a deletion
	Discovery  error // of what other servers have
}

// Empty reports whether the namespace may go.
func (r Remains) Empty() bool { return len(r.Resources) == 0 && r.Failure == nil && r.Discovery == nil }

// Conditions sets the conditions of a namespace that is being emptied.
func Conditions(status *corev1.NamespaceStatus, r Remains, now time.Time) {
	if r.Discovery != nil {
		message := r.Discovery.Error()
		if failed := (*foreign.DiscoveryError)(nil); errors.As(r.Discovery, &failed) {
			message = fmt.Sprintf("Discovery failed for some groups, %d failing: %s", len(failed.Failed), message)
		}
		set(status, corev1.NamespaceDeletionDiscoveryFailure, true, "DiscoveryFailed", message, now)
	} else {
		set(status, corev1.NamespaceDeletionDiscoveryFailure, false, "ResourcesDiscovered", "All resources successfully discovered", now)
	}
	set(status, corev1.NamespaceDeletionGVParsingFailure, false, "ParsedGroupVersions", "All legacy kube types successfully parsed", now)
	if r.Failure != nil {
		set(status, corev1.NamespaceDeletionContentFailure, true, "ContentDeletionFailed", "Failed to delete all resource types, 1 remaining: "+r.Failure.Error(), now)
	} else {
		set(status, corev1.NamespaceDeletionContentFailure, false, "ContentDeleted", "All content successfully deleted, may be waiting on finalization", now)
	}
	if len(r.Resources) > 0 {
		set(status, corev1.NamespaceContentRemaining, true, "SomeResourcesRemain",
			"Some resources are remaining: "+list(r.Resources, "%s has %d resource instances"), now)
	} else {
		set(status, corev1.NamespaceContentRemaining, false, "ContentRemoved", "All content successfully removed", now)
	}
	if len(r.Finalizers) > 0 {
		set(status, corev1.NamespaceFinalizersRemaining, true, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+list(r.Finalizers, "%s in %d resource instances"), now)
	} else {
		set(status, corev1.NamespaceFinalizersRemaining, false, "ContentHasNoFinalizers", "All content-preserving finalizers finished", now)
	}
}

func list(counts map[string]int, format string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf(format, name, counts[name]))
	}
	return strings.Join(out, ", ")
}

func set(status *corev1.NamespaceStatus, t corev1.NamespaceConditionType, yes bool, reason, message string, now time.Time) {
	c := corev1.NamespaceCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	if yes {
		c.Status = corev1.ConditionTrue
	}
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type != t {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	status.Conditions = append(status.Conditions, c)
}
