package quota

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// amounts is "cpu=1 memory=2Gi".
func amounts(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func pod(requests, limits corev1.ResourceList, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}}}}
	for _, e := range edit {
		e(p)
	}
	return p
}

func quotaOf(hard, used corev1.ResourceList, scopes ...corev1.ResourceQuotaScope) *corev1.ResourceQuota {
	return &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "q"},
		Spec:       corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes},
		Status:     corev1.ResourceQuotaStatus{Hard: hard, Used: used},
	}
}

var (
	podsResource  = schema.GroupResource{Resource: "pods"}
	serviceKind   = schema.GroupResource{Resource: "services"}
	claimResource = schema.GroupResource{Resource: "persistentvolumeclaims"}
)

func TestCheck(t *testing.T) {
	small := pod(amounts("cpu", "500m", "memory", "64Mi"), amounts("cpu", "1", "memory", "64Mi"))
	for _, tc := range []struct {
		name  string
		quota *corev1.ResourceQuota
		gr    schema.GroupResource
		obj   runtime.Object
		old   runtime.Object
		used  corev1.ResourceList // nil: as it was
		err   string
	}{
		{name: "room", quota: quotaOf(amounts("pods", "2", "requests.cpu", "1"), amounts("pods", "1", "requests.cpu", "500m")), gr: podsResource, obj: small,
			used: amounts("pods", "2", "requests.cpu", "1")},
		{name: "no room", quota: quotaOf(amounts("pods", "1", "limits.cpu", "10"), amounts("pods", "1", "limits.cpu", "1")), gr: podsResource, obj: small,
			err: "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"},
		{name: "no room for two things", quota: quotaOf(amounts("pods", "0", "cpu", "100m"), amounts("pods", "0", "cpu", "0")), gr: podsResource, obj: small,
			err: "exceeded quota: q, requested: cpu=500m,pods=1, used: cpu=0,pods=0, limited: cpu=100m,pods=0"},
		{name: "not said", quota: quotaOf(amounts("limits.memory", "1Gi"), amounts("limits.memory", "0")), gr: podsResource, obj: pod(nil, nil),
			err: "failed quota: q: must specify limits.memory for: c"},
		{name: "not counted yet", quota: quotaOf(amounts("pods", "1"), nil), gr: podsResource, obj: small,
			err: "status unknown for quota: q, resources: pods"},
		{name: "about something else", quota: quotaOf(amounts("services", "0"), amounts("services", "0")), gr: podsResource, obj: small},
		{name: "in the scope", quota: quotaOf(amounts("pods", "5"), amounts("pods", "0"), corev1.ResourceQuotaScopeBestEffort), gr: podsResource, obj: pod(nil, nil), used: amounts("pods", "1")},
		{name: "not in the scope", quota: quotaOf(amounts("pods", "0"), amounts("pods", "0"), corev1.ResourceQuotaScopeBestEffort), gr: podsResource, obj: small},
		{name: "extended", quota: quotaOf(amounts("requests.example.com/dongle", "3"), amounts("requests.example.com/dongle", "2")), gr: podsResource,
			obj: pod(amounts("example.com/dongle", "2"), amounts("example.com/dongle", "2")),
			err: "exceeded quota: q, requested: requests.example.com/dongle=2, used: requests.example.com/dongle=2, limited: requests.example.com/dongle=3"},
		{name: "any kind", quota: quotaOf(amounts("count/deployments.apps", "0"), amounts("count/deployments.apps", "0")), gr: schema.GroupResource{Group: "apps", Resource: "deployments"}, obj: &corev1.ConfigMap{},
			err: "exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=0, limited: count/deployments.apps=0"},
		{name: "a Service grows ports", quota: quotaOf(amounts("services", "1", "services.nodeports", "1"), amounts("services", "1", "services.nodeports", "0")), gr: serviceKind,
			obj:  &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{}}}},
			old:  &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{}}}},
			used: amounts("services", "1", "services.nodeports", "1")},
		{name: "storage of a class", quota: quotaOf(amounts("gold.storageclass.storage.k8s.io/requests.storage", "1Gi"), amounts("gold.storageclass.storage.k8s.io/requests.storage", "0")), gr: claimResource,
			obj:  &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("gold"), Resources: corev1.VolumeResourceRequirements{Requests: amounts("storage", "1Gi")}}},
			used: amounts("gold.storageclass.storage.k8s.io/requests.storage", "1Gi")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.quota.DeepCopy()
			used, err := Check(tc.quota, Object{tc.gr, tc.obj}, tc.old, now)
			message := ""
			if err != nil {
				message = err.Error()
			}
			if message != tc.err {
				t.Errorf("error %q, want %q", message, tc.err)
			}
			if (used == nil) != (tc.used == nil) || used != nil && !Equal(used, tc.used) {
				t.Errorf("used %v, want %v", used, tc.used)
			}
			if !Equal(before.Status.Used, tc.quota.Status.Used) {
				t.Error("the quota itself was changed")
			}
		})
	}
}

func TestTotal(t *testing.T) {
	hard := amounts("pods", "9", "count/pods", "9", "requests.memory", "1Gi", "services.nodeports", "9", "secrets", "9")
	objects := []Object{
		{podsResource, pod(amounts("memory", "10Mi"), nil)},
		{podsResource, pod(amounts("memory", "10Mi"), nil, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })},
		{podsResource, pod(amounts("memory", "10Mi"), nil, func(p *corev1.Pod) { // on a lost device
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: now.Add(-time.Minute)}, ptr.To[int64](30)
		})},
		{schema.GroupResource{Resource: "secrets"}, &corev1.Secret{}},
	}
	want := amounts("pods", "1", "count/pods", "3", "requests.memory", "10Mi", "services.nodeports", "0", "secrets", "1")
	if got := Total(quotaOf(hard, nil), objects, now); !Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Total(quotaOf(amounts("pods", "9"), nil, corev1.ResourceQuotaScopeTerminating), objects, now); !Equal(got, amounts("pods", "0")) {
		t.Errorf("scoped: %v", got)
	}
}
