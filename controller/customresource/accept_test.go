package customresource_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/controller/customresource"
)

func definition(name, plural, kind string, short ...string) *apiextensionsv1.CustomResourceDefinition {
	d := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
	d.Spec.Group = "example.com"
	d.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{
		Plural: plural, Singular: strings.ToLower(kind), Kind: kind, ListKind: kind + "List", ShortNames: short}
	return d
}

func conditions(d *apiextensionsv1.CustomResourceDefinition) string {
	var out []string
	for _, c := range d.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s(%s)", c.Type, c.Status, c.Reason))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestAccept(t *testing.T) {
	now := metav1.NewTime(time.Unix(1000, 0))
	first := definition("a", "things", "Thing", "th")
	customresource.Accept(first, nil, now)
	if got := conditions(first); got != "Established=True(InitialNamesAccepted) NamesAccepted=True(NoConflicts)" {
		t.Fatal(got)
	}
	if first.Status.AcceptedNames.ListKind != "ThingList" {
		t.Errorf("accepted %+v", first.Status.AcceptedNames)
	}
	for _, test := range []struct {
		name string
		crd  *apiextensionsv1.CustomResourceDefinition
		want string
	}{
		{"another", definition("b", "others", "Other"), "Established=True(InitialNamesAccepted) NamesAccepted=True(NoConflicts)"},
		{"the same plural", definition("b", "things", "Other"), "Established=False(NotAccepted) NamesAccepted=False(PluralConflict)"},
		{"the same kind", definition("b", "others", "Thing"), "Established=False(NotAccepted) NamesAccepted=False(ListKindConflict)"},
		{"the same short name", definition("b", "others", "Other", "th"), "Established=False(NotAccepted) NamesAccepted=False(ShortNamesConflict)"},
	} {
		customresource.Accept(test.crd, []*apiextensionsv1.CustomResourceDefinition{first, test.crd}, now)
		if got := conditions(test.crd); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	// Once established it stays so, with the names it had.
	again := first.DeepCopy()
	again.Spec.Names.ShortNames = []string{"ot"}
	other := definition("b", "others", "Other", "ot")
	other.Status.AcceptedNames = other.Spec.Names
	customresource.Accept(again, []*apiextensionsv1.CustomResourceDefinition{again, other}, metav1.NewTime(time.Unix(2000, 0)))
	if got := conditions(again); got != "Established=True(InitialNamesAccepted) NamesAccepted=False(ShortNamesConflict)" || again.Status.AcceptedNames.ShortNames[0] != "th" {
		t.Errorf("%s, %v", got, again.Status.AcceptedNames)
	}
	same := first.DeepCopy()
	customresource.Accept(same, []*apiextensionsv1.CustomResourceDefinition{same}, metav1.NewTime(time.Unix(3000, 0)))
	if !same.Status.Conditions[0].LastTransitionTime.Equal(&now) {
		t.Error("a condition that stays moved its time")
	}
}
