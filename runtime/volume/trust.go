package volume

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// trustBundle adds the certificates of the ClusterTrustBundles that s chooses, each
// once (pkg/kubelet/clustertrustbundle has the rules and the words).
func (m *Manager) trustBundle(pod *corev1.Pod, s *corev1.ClusterTrustBundleProjection, def fs.FileMode, p payload) error {
	name, err := clean(s.Path)
	if err != nil {
		return err
	}
	bundles, err := m.chosenBundles(s)
	if err != nil {
		return err
	}
	fm, uid := tokenAccess(pod, def)
	p[name] = file{data: trustAnchors(pod.UID, bundles), mode: fm, uid: uid}
	return nil
}

// chosenBundles are the ClusterTrustBundles that s chooses: none is an error, unless
// it is optional.
func (m *Manager) chosenBundles(s *corev1.ClusterTrustBundleProjection) ([]*certificatesv1.ClusterTrustBundle, error) {
	switch {
	case s.Name != nil:
		if b, ok := m.cfg.Objects.ClusterTrustBundle(*s.Name); ok {
			return []*certificatesv1.ClusterTrustBundle{b}, nil
		}
		if isTrue(s.Optional) {
			return nil, nil
		}
		return nil, fmt.Errorf("while getting ClusterTrustBundle: %w", apierrors.NewNotFound(certificatesv1.Resource("clustertrustbundle"), *s.Name))
	case s.SignerName != nil:
		// No selector selects nothing, an empty one everything.
		selector, err := metav1.LabelSelectorAsSelector(s.LabelSelector)
		if err != nil {
			return nil, fmt.Errorf("while parsing label selector: %w", err)
		}
		chosen := slices.DeleteFunc(m.cfg.Objects.ClusterTrustBundles(), func(b *certificatesv1.ClusterTrustBundle) bool {
			return b.Spec.SignerName != *s.SignerName || !selector.Matches(labels.Set(b.Labels))
		})
		if len(chosen) == 0 && !isTrue(s.Optional) {
			return nil, errors.New("combination of signerName and labelSelector matched zero ClusterTrustBundles")
		}
		return chosen, nil
	}
	return nil, errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
}

// trustAnchors are the certificates of bundles, each once, as PEM without anything
// else. No program should come to rely on their order: it is each Pod's own, by a
// hash of the Pod's uid and the certificate. As it takes nothing else to tell it, a
// restart of edged writes no file again.
func trustAnchors(uid types.UID, bundles []*certificatesv1.ClusterTrustBundle) []byte {
	var all []anchor
	for _, b := range bundles {
		for block, rest := pem.Decode([]byte(b.Spec.TrustBundle)); block != nil; block, rest = pem.Decode(rest) {
			all = append(all, anchor{sha256.Sum256(append([]byte(uid), block.Bytes...)), block.Bytes})
		}
	}
	slices.SortFunc(all, func(a, b anchor) int {
		return cmp.Or(bytes.Compare(a.rank[:], b.rank[:]), bytes.Compare(a.der, b.der))
	})
	all = slices.CompactFunc(all, func(a, b anchor) bool { return bytes.Equal(a.der, b.der) })
	var out bytes.Buffer
	for _, a := range all {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.der}))
	}
	return out.Bytes()
}

// anchor is a certificate, and what puts it in its place.
type anchor struct {
	rank [sha256.Size]byte
	der  []byte
}
