package deployment

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Kind is what owns the ReplicaSets.
var Kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// Annotations that kubectl and other controllers rely on.
const (
	RevisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
	// maxHistory bounds the annotation that lists former revisions, in bytes,
	// as upstream.
	maxHistory = 2000
)

// setName is the name of a Deployment's ReplicaSet.
func setName(deployment, hash string) string {
	const maxName = 253
	if room := maxName - len(hash) - 1; len(deployment) > room {
		deployment = deployment[:room]
	}
	return deployment + "-" + hash
}

// equalIgnoringHash compares templates but for the label that we add.
func equalIgnoringHash(a, b *corev1.PodTemplateSpec) bool {
	x, y := *a, *b
	x.Labels, y.Labels = withoutHash(a.Labels), withoutHash(b.Labels)
	return equality.Semantic.DeepEqual(&x, &y)
}

func withoutHash(labels map[string]string) map[string]string {
	if _, ok := labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return labels
	}
	out := maps.Clone(labels)
	delete(out, appsv1.DefaultDeploymentUniqueLabelKey)
	return out
}

func byAge(a, b *appsv1.ReplicaSet) int {
	if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
		return d
	}
	return strings.Compare(a.Name, b.Name)
}

func byRevision(a, b *appsv1.ReplicaSet) int {
	if d := cmp.Compare(revisionOf(a), revisionOf(b)); d != 0 {
		return d
	}
	return byAge(a, b)
}

func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[RevisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func maxRevision(sets []*appsv1.ReplicaSet) int64 {
	highest := int64(0)
	for _, rs := range sets {
		highest = max(highest, revisionOf(rs))
	}
	return highest
}

func specReplicas(rs *appsv1.ReplicaSet) int32      { return *rs.Spec.Replicas }
func actualReplicas(rs *appsv1.ReplicaSet) int32    { return rs.Status.Replicas }
func availableReplicas(rs *appsv1.ReplicaSet) int32 { return rs.Status.AvailableReplicas }

func sum(sets []*appsv1.ReplicaSet, of func(*appsv1.ReplicaSet) int32) int32 {
	n := int32(0)
	for _, rs := range sets {
		n += of(rs)
	}
	return n
}

func activeSets(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(sets), func(rs *appsv1.ReplicaSet) bool { return *rs.Spec.Replicas == 0 })
}

func isRolling(d *appsv1.Deployment) bool {
	return d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType
}

// fenceposts are the absolute surge and unavailability; not both are zero.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		surge = scaled(ru.MaxSurge, *d.Spec.Replicas, true)
		unavailable = scaled(ru.MaxUnavailable, *d.Spec.Replicas, false)
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func scaled(v *intstr.IntOrString, total int32, up bool) int32 {
	n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(v, intstr.FromInt32(0)), int(total), up)
	if err != nil {
		return 0
	}
	return int32(n)
}

func maxSurge(d *appsv1.Deployment) int32 {
	if !isRolling(d) {
		return 0
	}
	surge, _ := fenceposts(d)
	return surge
}

func maxUnavailable(d *appsv1.Deployment) int32 {
	if !isRolling(d) || *d.Spec.Replicas == 0 {
		return 0
	}
	_, unavailable := fenceposts(d)
	return min(unavailable, *d.Spec.Replicas)
}

// annotateNew gives rs the Deployment's annotations and its revision and, when
// it is about to be made, the sizes. It reports whether anything changed.
func annotateNew(d *appsv1.Deployment, rs *appsv1.ReplicaSet, revision int64, exists bool) bool {
	changed := false
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range d.Annotations {
		if old, ok := rs.Annotations[k]; !ownAnnotation(k) && (!ok || old != v) {
			rs.Annotations[k] = v
			changed = true
		}
	}
	old, had := rs.Annotations[RevisionAnnotation]
	was := int64(0)
	if old != "" {
		n, err := strconv.ParseInt(old, 10, 64)
		if err != nil {
			return false
		}
		was = n
	}
	if was < revision {
		rs.Annotations[RevisionAnnotation] = strconv.FormatInt(revision, 10)
		changed = true
		if had {
			remember(rs, old)
		}
	}
	if !exists {
		annotateSizes(d, rs)
		changed = true
	}
	return changed
}

// ownAnnotation reports whether an annotation is not for ReplicaSets to
// inherit.
func ownAnnotation(key string) bool {
	switch key {
	case corev1.LastAppliedConfigAnnotation, RevisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo:
		return true
	}
	return false
}

// remember adds a former revision to the history, dropping the oldest.
func remember(rs *appsv1.ReplicaSet, revision string) {
	history := strings.Split(rs.Annotations[historyAnnotation], ",")
	if history[0] == "" {
		history = nil
	}
	history = append(history, revision)
	for len(history) > 1 && len(strings.Join(history, ",")) > maxHistory {
		history = history[1:]
	}
	rs.Annotations[historyAnnotation] = strings.Join(history, ",")
}

func sizeAnnotations(d *appsv1.Deployment) (desired, most string) {
	want := *d.Spec.Replicas
	return strconv.Itoa(int(want)), strconv.Itoa(int(want + maxSurge(d)))
}

func sizesOutdated(d *appsv1.Deployment, rs *appsv1.ReplicaSet) bool {
	desired, most := sizeAnnotations(d)
	return rs.Annotations[desiredAnnotation] != desired || rs.Annotations[maxAnnotation] != most
}

func annotateSizes(d *appsv1.Deployment, rs *appsv1.ReplicaSet) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desiredAnnotation], rs.Annotations[maxAnnotation] = sizeAnnotations(d)
}

func sizeAnnotation(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseUint(rs.Annotations[key], 10, 31)
	return int32(n), err == nil
}
