package revision

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func template(image string) *corev1.PodTemplateSpec {
	return &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

func rev(t *testing.T, name string, number int64, image string) *appsv1.ControllerRevision {
	t.Helper()
	data, err := Data(template(image))
	if err != nil {
		t.Fatal(err)
	}
	return &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: name}, Revision: number, Data: runtime.RawExtension{Raw: data}}
}

func TestTemplateComesBack(t *testing.T) {
	got, err := Template(rev(t, "r", 1, "one"))
	if err != nil || !equality.Semantic.DeepEqual(got, template("one")) {
		t.Errorf("%v %v", got, err)
	}
	data, err := Data(template("one"))
	want := `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"image":"one","name":"c","resources":{}}]}}}}`
	if err != nil || string(data) != want { // upstream's bytes: a hand-over rolls nothing out
		t.Errorf("%s %v", data, err)
	}
}

func TestHistory(t *testing.T) {
	one, two, three := rev(t, "x-1", 1, "one"), rev(t, "x-2", 2, "two"), rev(t, "x-3", 3, "three")
	for _, tc := range []struct {
		name      string
		revisions []*appsv1.ControllerRevision
		image     string
		current   string
		number    int64
		old, same int
	}{
		{name: "first", image: "one", number: 1},
		{name: "unchanged", revisions: []*appsv1.ControllerRevision{two, one}, image: "two", current: "x-2", number: 2, old: 1},
		{name: "new template", revisions: []*appsv1.ControllerRevision{one, two}, image: "three", number: 3, old: 2},
		{name: "rolled back", revisions: []*appsv1.ControllerRevision{one, two, three}, image: "one", current: "x-1", number: 4, old: 2},
		{name: "twice the same", revisions: []*appsv1.ControllerRevision{rev(t, "y", 1, "one"), rev(t, "z", 2, "one")}, image: "one", current: "z", number: 2, same: 1},
	} {
		data, _ := Data(template(tc.image))
		h := Of(tc.revisions, data)
		name := ""
		if h.Current != nil {
			name = h.Current.Name
		}
		if name != tc.current || h.Number != tc.number || len(h.Old) != tc.old || len(h.Same) != tc.same {
			t.Errorf("%s: current %q number %d old %d same %d", tc.name, name, h.Number, len(h.Old), len(h.Same))
		}
	}
	if got := Excess([]*appsv1.ControllerRevision{one, two, three}, func(r *appsv1.ControllerRevision) bool { return r == one }, 1); len(got) != 1 || got[0] != two {
		t.Errorf("excess: %v", got)
	}
}
