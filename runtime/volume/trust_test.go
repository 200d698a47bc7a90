package volume

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// certPEM is PEM of what is no certificate: a volume has no opinion on that.
func certPEM(der string, headers map[string]string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: headers, Bytes: []byte(der)}))
}

func trustVolume(sources ...corev1.ClusterTrustBundleProjection) corev1.Volume {
	v := corev1.Volume{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}}
	for i := range sources {
		sources[i].Path = "ca.pem"
		v.Projected.Sources = append(v.Projected.Sources, corev1.VolumeProjection{ClusterTrustBundle: &sources[i]})
	}
	return v
}

// ders are the contents of a PEM file, in order.
func ders(t *testing.T, data string) []string {
	t.Helper()
	var out []string
	rest := []byte(data)
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" || len(b.Headers) > 0 {
			t.Errorf("a block %q with the headers %v", b.Type, b.Headers)
		}
		out = append(out, string(b.Bytes))
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		t.Errorf("%q beside the certificates", rest)
	}
	return out
}

// Which bundles are chosen, that each certificate is there once, and what is said
// when there is none.
func TestTrustBundleSelection(t *testing.T) {
	yes, one, two, named, missing := true, "a.example/one", "a.example/two", "plain", "missing"
	alive := &metav1.LabelSelector{MatchLabels: map[string]string{"alive": "true"}}
	bundle := func(signer, alive, pem string) *certificatesv1.ClusterTrustBundle {
		b := &certificatesv1.ClusterTrustBundle{Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: pem}}
		if alive != "" {
			b.Labels = map[string]string{"alive": alive}
		}
		return b
	}
	for _, c := range []struct {
		name   string
		source corev1.ClusterTrustBundleProjection
		want   string
		err    string
	}{
		{"by name", corev1.ClusterTrustBundleProjection{Name: &named}, "p", ""},
		{"no such name", corev1.ClusterTrustBundleProjection{Name: &missing}, "",
			`MountVolume.SetUp failed for volume "t" : while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "missing" not found`},
		{"no such name, optional", corev1.ClusterTrustBundleProjection{Name: &missing, Optional: &yes}, "", ""},
		{"a signer's, by labels", corev1.ClusterTrustBundleProjection{SignerName: &one, LabelSelector: alive}, "k l", ""},
		{"all of a signer's", corev1.ClusterTrustBundleProjection{SignerName: &one, LabelSelector: &metav1.LabelSelector{}}, "d k l", ""},
		{"another signer's", corev1.ClusterTrustBundleProjection{SignerName: &two, LabelSelector: &metav1.LabelSelector{}}, "o", ""},
		{"no selector", corev1.ClusterTrustBundleProjection{SignerName: &one}, "",
			`MountVolume.SetUp failed for volume "t" : combination of signerName and labelSelector matched zero ClusterTrustBundles`},
		{"no selector, optional", corev1.ClusterTrustBundleProjection{SignerName: &one, Optional: &yes}, "", ""},
		{"labels that none has", corev1.ClusterTrustBundleProjection{SignerName: &two, LabelSelector: alive}, "",
			`MountVolume.SetUp failed for volume "t" : combination of signerName and labelSelector matched zero ClusterTrustBundles`},
		{"neither", corev1.ClusterTrustBundleProjection{}, "",
			`MountVolume.SetUp failed for volume "t" : ClusterTrustBundle projection requires either name or signerName to be set`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, objects, _, _ := newManager(t)
			objects.bundles = map[string]*certificatesv1.ClusterTrustBundle{
				named:    bundle("", "true", "what precedes\n"+certPEM("p", map[string]string{"h": "v"})),
				"one-1":  bundle(one, "true", certPEM("k", nil)+certPEM("l", nil)+certPEM("k", map[string]string{"h": "v"})),
				"one-2":  bundle(one, "true", certPEM("l", nil)),
				"one-3":  bundle(one, "false", certPEM("d", nil)),
				"two-1":  bundle(two, "", certPEM("o", nil)),
				"two-0x": bundle(two, "false", certPEM("o", nil)),
			}
			paths, _, err := m.Setup(context.Background(), pod(trustVolume(c.source)))
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := ders(t, read(t, paths["t"]+"/ca.pem"))
			if slices.Sort(got); strings.Join(got, " ") != c.want {
				t.Errorf("%q, want %s", got, c.want)
			}
		})
	}
}

// The order is one Pod's own and stays, so that the file is not written again, also
// not by a daemon that starts; a bundle that changes changes the file.
func TestTrustBundleOrderAndChange(t *testing.T) {
	m, objects, _, _ := newManager(t)
	var bundle strings.Builder
	for c := 'a'; c <= 'z'; c++ {
		bundle.WriteString(certPEM(string(c), nil))
	}
	name, ctx := "b", context.Background()
	set := func(text string) {
		objects.bundles = map[string]*certificatesv1.ClusterTrustBundle{name: {Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: text}}}
	}
	set(bundle.String())
	content := func(m *Manager, uid types.UID) (ca, data string) {
		t.Helper()
		p := pod(trustVolume(corev1.ClusterTrustBundleProjection{Name: &name}))
		p.UID = uid
		paths, again, err := m.Setup(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if !again.IsZero() {
			t.Errorf("to be set up again at %v", again)
		}
		if data, err = os.Readlink(paths["t"] + "/..data"); err != nil {
			t.Fatal(err)
		}
		return read(t, paths["t"]+"/ca.pem"), data
	}
	first, data := content(m, "one")
	if got := ders(t, first); len(got) != 26 || slices.IsSorted(got) {
		t.Errorf("order %q", got)
	}
	if second, now := content(m, "one"); second != first || now != data {
		t.Error("written again without a change")
	}
	restarted, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if second, now := content(restarted, "one"); second != first || now != data {
		t.Error("written again by a daemon that starts")
	}
	if other, _ := content(m, "other"); other == first || len(other) != len(first) {
		t.Errorf("another Pod's order: %q", ders(t, other))
	}
	set(certPEM("new", nil))
	if changed, _ := content(m, "one"); changed != certPEM("new", nil) {
		t.Errorf("after a change: %q", changed)
	}
}
