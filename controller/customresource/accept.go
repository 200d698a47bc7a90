package customresource

import (
	"fmt"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type (
	definition = apiextensionsv1.CustomResourceDefinition
	condition  = apiextensionsv1.CustomResourceDefinitionCondition
)

// Accept changes the status of crd, a private copy, to what follows from the
// names that the other definitions hold.
func Accept(crd *definition, others []*definition, now metav1.Time) {
	resources, kinds := taken(crd, others)
	want, have := &crd.Spec.Names, &crd.Status.AcceptedNames
	accepted := *have
	names := condition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found"}
	refuse := func(reason string, in ...string) {
		names.Status, names.Reason, names.Message = apiextensionsv1.ConditionFalse, reason, strings.Join(in, ", ")
	}
	one := func(want, have string, into *string, used map[string]bool, reason string) {
		if want != have && used[want] {
			refuse(reason, inUse(want))
			return
		}
		*into = want
	}
	one(want.Plural, have.Plural, &accepted.Plural, resources, "PluralConflict")
	one(want.Singular, have.Singular, &accepted.Singular, resources, "SingularConflict")
	var clashes []string
	for _, short := range want.ShortNames {
		if !slices.Contains(have.ShortNames, short) && resources[short] {
			clashes = append(clashes, inUse(short))
		}
	}
	if len(clashes) > 0 {
		refuse("ShortNamesConflict", clashes...)
	} else {
		accepted.ShortNames = want.ShortNames
	}
	one(want.Kind, have.Kind, &accepted.Kind, kinds, "KindConflict")
	one(want.ListKind, have.ListKind, &accepted.ListKind, kinds, "ListKindConflict")
	accepted.Categories = want.Categories
	crd.Status.AcceptedNames = accepted
	set(crd, names, now)
	switch {
	case is(crd, apiextensionsv1.Established):
	case names.Status == apiextensionsv1.ConditionTrue:
		set(crd, condition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue, Reason: "InitialNamesAccepted", Message: "the initial names have been accepted"}, now)
	default:
		set(crd, condition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse, Reason: "NotAccepted", Message: "not all names are accepted"}, now)
	}
}

func inUse(name string) string { return fmt.Sprintf("%q is already in use", name) }

// taken are the names that other definitions of the group were given.
func taken(crd *definition, others []*definition) (resources, kinds map[string]bool) {
	resources, kinds = map[string]bool{}, map[string]bool{}
	for _, o := range others {
		if o.Name == crd.Name || o.Spec.Group != crd.Spec.Group {
			continue
		}
		n := &o.Status.AcceptedNames
		for _, r := range append([]string{n.Plural, n.Singular}, n.ShortNames...) {
			resources[r] = true
		}
		kinds[n.Kind], kinds[n.ListKind] = true, true
	}
	delete(resources, "")
	delete(kinds, "")
	return resources, kinds
}

func is(crd *definition, t apiextensionsv1.CustomResourceDefinitionConditionType) bool {
	return slices.ContainsFunc(crd.Status.Conditions, func(c condition) bool {
		return c.Type == t && c.Status == apiextensionsv1.ConditionTrue
	})
}

// set replaces a condition; its time moves only with its status.
func set(crd *definition, c condition, now metav1.Time) {
	c.LastTransitionTime = now
	for i, old := range crd.Status.Conditions {
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		c.ObservedGeneration = old.ObservedGeneration
		crd.Status.Conditions[i] = c
		return
	}
	crd.Status.Conditions = append(crd.Status.Conditions, c)
}
