package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// rootPEM is a root that nothing is signed by.
func rootPEM(t *testing.T, name string) string {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestTrustBundleFollows: a Pod waits for a trust bundle, begins as soon as there is
// one, and sees what becomes of it, also that it is not chosen any more.
func TestTrustBundleFollows(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	const signer = "edged.example/follows"
	p.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: trusting}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: edged.example/busybox:1, command: [sleep, "7654399"], volumeMounts: [{name: ca, mountPath: /ca}]}]
  volumes:
  - name: ca
    projected:
      sources: [{clusterTrustBundle: {signerName: %s, labelSelector: {matchLabels: {alive: "yes"}}, path: ca.pem}}]
`, signer))
	p.eventually(20*time.Second, "told what the Pod waits for", func() error {
		out := p.kubectl("get", "events")
		if !strings.Contains(out, "combination of signerName and labelSelector matched zero ClusterTrustBundles") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if pod := p.pod("trusting"); pod.Status.Phase != corev1.PodPending {
		t.Errorf("phase %s without a bundle", pod.Status.Phase)
	}
	bundle := func(name string, roots string) {
		t.Helper()
		indented := strings.ReplaceAll(strings.TrimSpace(roots), "\n", "\n    ")
		p.apply(fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {name: 'edged.example:follows:%s', labels: {alive: \"yes\"}}\nspec:\n  signerName: %s\n  trustBundle: |\n    %s\n", name, signer, indented))
		t.Cleanup(func() {
			p.MustKubectl("", "delete", "clustertrustbundle", "edged.example:follows:"+name, "--ignore-not-found")
		})
	}
	one, two := rootPEM(t, "one"), rootPEM(t, "two")
	bundle("a", one)
	p.waitReady("trusting")
	holds := func(want ...string) {
		t.Helper()
		p.eventually(10*time.Second, "in the Pod's file", func() error {
			got := p.kubectl("exec", "trusting", "--", "cat", "/ca/ca.pem")
			size := 0
			for _, w := range want {
				if !strings.Contains(got, w) {
					return fmt.Errorf("%s is missing in %s", w, got)
				}
				size += len(w)
			}
			if len(got) != size {
				return fmt.Errorf("more than it should: %s", got)
			}
			return nil
		})
	}
	holds(one)
	bundle("b", two+one)
	holds(one, two)
	p.kubectl("label", "clustertrustbundle", "edged.example:follows:b", "alive-", "--overwrite")
	holds(one)
	bundle("a", two)
	holds(two)
}
