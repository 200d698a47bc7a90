package agent

import (
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A change of a bundle concerns Pods that name it, and all that choose of its signer's:
// its labels may have been others before.
func TestUsesTrustBundle(t *testing.T) {
	name, signer, none := "b", "a.example/s", ""
	for _, c := range []struct {
		what         string
		source       corev1.ClusterTrustBundleProjection
		bundle, from string
		want         bool
	}{
		{"named", corev1.ClusterTrustBundleProjection{Name: &name}, "b", "", true},
		{"another name", corev1.ClusterTrustBundleProjection{Name: &name}, "c", signer, false},
		{"the signer's", corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}, "b", signer, true},
		{"another signer's", corev1.ClusterTrustBundleProjection{SignerName: &signer}, "b", "a.example/t", false},
		{"no signer's", corev1.ClusterTrustBundleProjection{SignerName: &none}, "b", signer, false},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{}}, {ClusterTrustBundle: &c.source}}}}},
		}}}
		b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: c.bundle}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: c.from}}
		if got := usesTrustBundle(p, b); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
