package statefulset

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"edged/controller/podset"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func set(replicas int32, edit ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns", UID: "set"}}
	s.Spec.Replicas = &replicas
	s.Spec.ServiceName = "dbs"
	s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](0)}}
	for _, e := range edit {
		e(s)
	}
	return s
}

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

func partition(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
}

func unavailable(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt32(n))
	}
}

func claimed(deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: deleted, WhenScaled: scaled}
	}
}

// pod is "0 new ready", "1 old", "2 new failed", "2 new ready deleted".
func pod(s string) *corev1.Pod {
	f := strings.Fields(s)
	name := "db-" + f[0]
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name), Labels: map[string]string{
		appsv1.StatefulSetRevisionLabel: f[1], appsv1.StatefulSetPodNameLabel: name,
	}}}
	p.Status.Phase = corev1.PodRunning
	for _, w := range f[2:] {
		switch w {
		case "ready":
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Minute))}}
		case "failed":
			p.Status.Phase = corev1.PodFailed
		case "pending":
			p.Status.Phase = corev1.PodPending
		case "deleted":
			p.DeletionTimestamp = &metav1.Time{Time: now}
		}
	}
	return p
}

func world(s *appsv1.StatefulSet, pods []string, claims ...*corev1.PersistentVolumeClaim) World {
	w := World{Set: s, Now: now, Current: Revision{"old", &s.Spec.Template}, Update: Revision{"new", &s.Spec.Template}}
	for _, p := range pods {
		w.Pods = append(w.Pods, pod(p))
	}
	w.Claim = func(name string) *corev1.PersistentVolumeClaim {
		for _, c := range claims {
			if c.Name == name {
				return c
			}
		}
		return nil
	}
	return w
}

func TestReconcile(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  *appsv1.StatefulSet
		pods string // separated by commas
		want string // +created@revision -deleted
	}{
		{"the first", set(3), "", "+0@new"},
		{"waits for it", set(3), "0 new", ""},
		{"the next", set(3), "0 new ready", "+1@new"},
		{"in parallel", set(3, parallel), "0 new", "+1@new +2@new"},
		{"a gap is filled first", set(3), "0 new ready,2 new ready", "+1@new"},
		{"from another number", set(2, func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5} }), "5 new ready,0 new ready", "+6@new"},
		{"one that ended is made again", set(1), "0 new failed", "-0"},
		{"when it is gone", set(1), "0 new failed deleted", ""},
		{"one on a lost device keeps its name", set(2), "0 new deleted,1 new ready", ""},
		{"also in parallel", set(2, parallel), "0 new deleted", "+1@new"},
		{"down from the top", set(1), "0 new ready,1 new ready,2 new ready", "-2"},
		{"one by one", set(1), "0 new ready,1 new ready,2 new ready deleted", ""},
		{"not while a lower one ails", set(1), "0 new,1 new ready,2 new ready", ""},
		{"the ailing one itself goes", set(1), "0 new ready,1 new ready,2 new", "-2"},
		{"but not past an ailing one", set(1), "0 new ready,1 new,2 new", ""},
		{"down in parallel", set(1, parallel), "0 new,1 new,2 new ready", "-2 -1"},
		{"update from the top", set(3), "0 old ready,1 old ready,2 old ready", "-2"},
		{"wait for the update", set(3), "0 old ready,1 old ready,2 new", ""},
		{"update on", set(3), "0 old ready,1 old ready,2 new ready", "-1"},
		{"with no partition said", set(2, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate = nil
			s.Status.CurrentReplicas = 2
		}), "0 old ready,1 old ready", "-1"},
		{"to the partition", set(3, partition(2)), "0 old ready,1 old ready,2 new ready", ""},
		{"below it as it was", set(3, partition(2)), "1 old ready,2 new ready", "+0@old"},
		{"two at a time", set(3, unavailable(2)), "0 old ready,1 old ready,2 old ready", "-2 -1"},
		{"parallel: what is no use first", set(3, parallel), "0 old,1 old ready,2 old ready", "-0"},
		{"on delete", set(1, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}), "0 old ready", ""},
		{"being deleted", set(3, func(s *appsv1.StatefulSet) { s.DeletionTimestamp = &metav1.Time{Time: now} }), "", ""},
		{"at rest", set(2), "0 new ready,1 new ready", ""},
		{"minReadySeconds", set(2, func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = 61 }), "0 new ready", ""},
		{"names that are none", set(1), "00 new ready,0 new ready,-1 new ready,x new ready", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := Reconcile(world(tc.set, strings.FieldsFunc(tc.pods, func(r rune) bool { return r == ',' })))
			var got []string
			for _, p := range plan.Create {
				got = append(got, "+"+strings.TrimPrefix(p.Name, "db-")+"@"+revisionOf(p))
			}
			for _, p := range plan.Delete {
				got = append(got, "-"+strings.TrimPrefix(p.Name, "db-"))
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
		})
	}
}

// TestSetsWithoutEnd: a number that nobody could have meant costs a round no more than
// podset.Burst Pods, and the others go on being looked after.
func TestSetsWithoutEnd(t *testing.T) {
	for _, replicas := range []int32{100_000, math.MaxInt32} {
		if got := Reconcile(world(set(replicas), []string{"0 new ready"})).Create; len(got) != 1 || got[0].Name != "db-1" {
			t.Errorf("in order: %d Pods", len(got))
		}
		plan := Reconcile(world(set(replicas, parallel, claimed("Retain", "Retain")), []string{"0 new ready", "2 new failed", "700 new ready"}))
		if len(plan.Create) != podset.Burst || len(plan.Claims) != podset.Burst || plan.Create[0].Name != "db-1" || len(plan.Delete) != 1 {
			t.Errorf("in parallel: %d Pods, %d claims, %d go", len(plan.Create), len(plan.Claims), len(plan.Delete))
		}
	}
}

func TestIdentity(t *testing.T) {
	s := set(1, claimed("Retain", "Retain"))
	s.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "data"}, {Name: "other"}}
	p := Reconcile(world(s, nil)).Create[0]
	if p.Name != "db-0" || p.Spec.Hostname != "db-0" || p.Spec.Subdomain != "dbs" || p.GenerateName != "" ||
		p.Labels[appsv1.PodIndexLabel] != "0" || p.Labels[appsv1.StatefulSetPodNameLabel] != "db-0" {
		t.Errorf("%+v", p)
	}
	if len(p.Spec.Volumes) != 2 || p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-db-0" || p.Spec.Volumes[1].Name != "other" {
		t.Errorf("%+v", p.Spec.Volumes)
	}
}

func TestClaims(t *testing.T) {
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	claim := func(n int, owners ...string) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("data-db-%d", n)}}
		for _, o := range owners {
			kind, rest, _ := strings.Cut(o, "/")
			name, uid, _ := strings.Cut(rest, "/")
			version := "apps/v1"
			if kind == "Pod" {
				version = "v1"
			}
			c.OwnerReferences = append(c.OwnerReferences, metav1.OwnerReference{APIVersion: version, Kind: kind, Name: name, UID: types.UID(uid), Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true)})
		}
		return c
	}
	for _, tc := range []struct {
		name   string
		set    *appsv1.StatefulSet
		pods   []string
		claims []*corev1.PersistentVolumeClaim
		want   string // +made(owners) name=owners
	}{
		{"made before the Pod", set(1, claimed(keep, keep)), nil, nil, "+data-db-0()"},
		{"with its owner", set(1, claimed(drop, keep)), nil, nil, "+data-db-0(db)"},
		{"made for a Pod that waits", set(1, claimed(keep, keep)), []string{"0 new pending"}, nil, "+data-db-0()"},
		{"kept", set(1, claimed(keep, keep)), []string{"0 new ready"}, []*corev1.PersistentVolumeClaim{claim(0)}, ""},
		{"kept from now on", set(1, claimed(keep, keep)), []string{"0 new ready"}, []*corev1.PersistentVolumeClaim{claim(0, "StatefulSet/db/set")}, "data-db-0="},
		{"goes with the set", set(1, claimed(drop, keep)), []string{"0 new ready"}, []*corev1.PersistentVolumeClaim{claim(0)}, "data-db-0=db"},
		{"goes with the Pod when scaled down", set(0, claimed(drop, drop)), []string{"0 new ready"}, []*corev1.PersistentVolumeClaim{claim(0, "StatefulSet/db/set")}, "data-db-0=db-0"},
		{"somebody else's", set(1, claimed(drop, drop)), []string{"0 new ready"}, []*corev1.PersistentVolumeClaim{claim(0, "Other/x/y")}, "conflict"},
		{"about to go with the one before", set(1, claimed(keep, drop)), nil, []*corev1.PersistentVolumeClaim{claim(0, "Pod/db-0/before")}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := Reconcile(world(tc.set, tc.pods, tc.claims...))
			names := func(refs []metav1.OwnerReference) (out []string) {
				for _, r := range refs {
					out = append(out, r.Name)
				}
				return out
			}
			var got []string
			for _, c := range plan.Claims {
				got = append(got, fmt.Sprintf("+%s(%s)", c.Name, strings.Join(names(c.OwnerReferences), ",")))
			}
			for _, o := range plan.Own {
				got = append(got, o.Claim.Name+"="+strings.Join(names(o.Refs), ","))
			}
			if len(plan.Conflicts) > 0 {
				got = append(got, "conflict")
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
			if strings.HasPrefix(tc.name, "about to go") && len(plan.Create) > 0 {
				t.Error("a Pod was made on a claim that is about to go")
			}
		})
	}
}

func TestStatus(t *testing.T) {
	s, _ := Status(world(set(3), []string{"0 old ready", "1 new", "2 new ready deleted"}), 0)
	if got := fmt.Sprintln(s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.CurrentReplicas, s.UpdatedReplicas, s.CurrentRevision, s.UpdateRevision); got != "3 2 2 1 1 old new\n" {
		t.Error(got)
	}
	s, _ = Status(world(set(2), []string{"0 new ready", "1 new ready"}), 0)
	if s.CurrentRevision != "new" || s.CurrentReplicas != 2 {
		t.Errorf("a finished update: %+v", s)
	}
}
