package volume

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fakeCertificates keeps requests as the cluster would, unless it fails.
type fakeCertificates struct {
	objects *fakeObjects
	err     error
	asked   []*certificatesv1.PodCertificateRequest
}

func (f *fakeCertificates) RequestPodCertificate(_ context.Context, req *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error) {
	if f.err != nil {
		return nil, f.err
	}
	req = req.DeepCopy()
	req.Name = fmt.Sprintf("%s%d", req.GenerateName, len(f.asked))
	req.UID = types.UID("uid-of-" + req.Name)
	f.asked = append(f.asked, req)
	f.objects.requests[req.Name] = req
	return req, nil
}

// answer gives the newest request a condition.
func (f *fakeCertificates) answer(condition, reason, message, chain string, refresh time.Time) {
	req := f.asked[len(f.asked)-1]
	req.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: reason, Message: message}}
	if chain != "" {
		req.Status.CertificateChain, req.Status.BeginRefreshAt = chain, &metav1.Time{Time: refresh}
	}
}

// certified is a Manager with a signer that a test plays, and its Pod.
type certified struct {
	*testing.T
	m       *Manager
	signer  *fakeCertificates
	objects *fakeObjects
	pod     *corev1.Pod
	advance func(time.Duration)
}

func newCertified(t *testing.T, keyType string) *certified {
	m, objects, _, advance := newManager(t)
	objects.requests = map[string]*certificatesv1.PodCertificateRequest{}
	signer := &fakeCertificates{objects: objects}
	m.cfg.Certificates = signer
	life := int32(7200)
	p := pod(corev1.Volume{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{DownwardAPI: &corev1.DownwardAPIProjection{}},
		{PodCertificate: &corev1.PodCertificateProjection{
			SignerName: "a.example/s", KeyType: keyType, MaxExpirationSeconds: &life, UserAnnotations: map[string]string{"a.example/x": "y"},
			CredentialBundlePath: "bundle.pem", KeyPath: "key.pem", CertificateChainPath: "chain/chain.pem",
		}}}}}})
	p.Spec.ServiceAccountName = "robot"
	return &certified{t, m, signer, objects, p, advance}
}

// setup sets the Pod's volumes up and returns the bundle and in what time to look
// again, or what the volume waits for.
func (c *certified) setup() (bundle string, again time.Duration, err error) {
	c.Helper()
	paths, next, err := c.m.Setup(context.Background(), c.pod)
	if err != nil {
		return "", 0, errors.New(strings.TrimPrefix(err.Error(), `MountVolume.SetUp failed for volume "t" : `))
	}
	bundle = read(c.T, paths["t"]+"/bundle.pem")
	if parts := read(c.T, paths["t"]+"/key.pem") + read(c.T, paths["t"]+"/chain/chain.pem"); parts != bundle {
		c.Errorf("key and chain are %q, the bundle is %q", parts, bundle)
	}
	return bundle, next.Sub(c.m.cfg.Now()), nil
}

// waits has setup fail with want.
func (c *certified) waits(want string) {
	c.Helper()
	if _, _, err := c.setup(); err == nil || err.Error() != want {
		c.Fatalf("%v, want %s", err, want)
	}
}

// holds has setup give a key of its own and what the chain says.
func (c *certified) holds(chain string) (bundle string, again time.Duration) {
	c.Helper()
	bundle, again, err := c.setup()
	if err != nil {
		c.Fatal(err)
	}
	key, rest := pem.Decode([]byte(bundle))
	if key == nil || key.Type != "PRIVATE KEY" || string(rest) != chain {
		c.Fatalf("bundle %q", bundle)
	}
	return bundle, again
}

const notIssued = "credential bundle is not issued yet"

// The request says whose it is and proves the key that the Pod gets with the chain.
func TestPodCertificateIsAskedFor(t *testing.T) {
	for _, keyType := range []string{"ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"} {
		t.Run(keyType, func(t *testing.T) {
			c := newCertified(t, keyType)
			c.waits(notIssued)
			c.waits(notIssued)
			if len(c.signer.asked) != 1 {
				t.Fatalf("asked %d times", len(c.signer.asked))
			}
			req := c.signer.asked[0]
			life := int32(7200)
			want := certificatesv1.PodCertificateRequestSpec{
				SignerName: "a.example/s", PodName: "p", PodUID: "uid-1", ServiceAccountName: "robot", ServiceAccountUID: "uid-robot",
				NodeName: "n", NodeUID: "uid-n", MaxExpirationSeconds: &life, UnverifiedUserAnnotations: map[string]string{"a.example/x": "y"},
				StubPKCS10Request: req.Spec.StubPKCS10Request,
			}
			if got := fmt.Sprint(&req.Spec); got != fmt.Sprint(&want) {
				t.Errorf("asked for %s, want %s", got, fmt.Sprint(&want))
			}
			if o := req.OwnerReferences; req.Namespace != "ns" || len(o) != 1 || o[0].UID != "uid-1" || o[0].Kind != "Pod" || o[0].Name != "p" {
				t.Errorf("in %s, owned by %v", req.Namespace, o)
			}
			proof, err := x509.ParseCertificateRequest(req.Spec.StubPKCS10Request)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.CheckSignature(); err != nil {
				t.Error(err)
			}
			c.signer.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "", "", "noise\n"+certPEM("leaf", map[string]string{"h": "v"})+certPEM("ca", nil), c.m.cfg.Now().Add(time.Hour))
			bundle, _ := c.holds(certPEM("leaf", nil) + certPEM("ca", nil))
			block, _ := pem.Decode([]byte(bundle))
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			public := key.(crypto.Signer)
			if eq, ok := public.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !eq.Equal(proof.PublicKey) {
				t.Error("the Pod's key is not the one that was proved")
			}
		})
	}
}

// A certificate is renewed at the signer's word, with a new key; until then, and
// while the answer is late, the Pod has the old one, also from a daemon that starts.
func TestPodCertificateIsRenewed(t *testing.T) {
	c := newCertified(t, "ED25519")
	issue := func(chain string) {
		c.signer.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "", "", certPEM(chain, nil), c.m.cfg.Now().Add(time.Hour))
	}
	c.waits(notIssued)
	issue("one")
	first, again := c.holds(certPEM("one", nil))
	if again < time.Hour || again > time.Hour+certificateSpread {
		t.Errorf("to be renewed in %v", again)
	}
	restarted, err := New(c.m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.m = restarted
	c.advance(again - time.Second)
	if now, left := c.holds(certPEM("one", nil)); now != first || left != time.Second || len(c.signer.asked) != 1 {
		t.Errorf("before its time: asked %d times, look again in %v", len(c.signer.asked), left)
	}
	c.advance(time.Second)
	c.signer.err = errors.New("no leader")
	if now, again := c.holds(certPEM("one", nil)); now != first || again != certificateRetry {
		t.Errorf("while nobody can be asked: look again in %v", again)
	}
	c.signer.err = nil
	if now, again := c.holds(certPEM("one", nil)); now != first || again != requestLost || len(c.signer.asked) != 2 {
		t.Errorf("asked %d times, look again in %v", len(c.signer.asked), again)
	}
	issue("two")
	second, _ := c.holds(certPEM("two", nil))
	if strings.HasPrefix(second, strings.TrimSuffix(first, certPEM("one", nil))) {
		t.Error("the key is the old one")
	}
}

// A request that somebody deleted is made again, but not one that is only late.
func TestPodCertificateRequestIsLost(t *testing.T) {
	c := newCertified(t, "ED25519")
	c.waits(notIssued)
	late := c.objects.requests
	c.objects.requests = map[string]*certificatesv1.PodCertificateRequest{}
	c.advance(requestLost - time.Second)
	c.waits(notIssued)
	if len(c.signer.asked) != 1 {
		t.Error("asked again for one that is late")
	}
	// Another of its name has nothing to say.
	for name := range late {
		c.objects.requests[name] = &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "other"}, Status: certificatesv1.PodCertificateRequestStatus{
			Conditions: []metav1.Condition{{Type: certificatesv1.PodCertificateRequestConditionTypeDenied}}}}
	}
	c.advance(time.Second)
	c.waits(notIssued)
	if len(c.signer.asked) != 2 {
		t.Error("not asked again")
	}
}

// What keeps a Pod from its certificate is told in upstream's words; a signer's no
// is final.
func TestPodCertificateErrors(t *testing.T) {
	for condition, want := range map[string]string{
		certificatesv1.PodCertificateRequestConditionTypeDenied: `PodCertificateRequest was permanently denied: reason="Why" message="because"`,
		certificatesv1.PodCertificateRequestConditionTypeFailed: `PodCertificateRequest was permanently failed: reason="Why" message="because"`,
	} {
		c := newCertified(t, "ED25519")
		c.waits(notIssued)
		c.signer.answer(condition, "Why", "because", "", time.Time{})
		c.waits(want)
		c.advance(24 * time.Hour)
		c.waits(want)
		if len(c.signer.asked) != 1 {
			t.Errorf("%s: asked %d times", condition, len(c.signer.asked))
		}
	}
	c := newCertified(t, "DSA")
	c.waits(`while generating keypair: unknown key type "DSA"`)
	c = newCertified(t, "ED25519")
	c.signer.err = errors.New("no leader")
	c.waits("while creating PodCertificateRequest: no leader")
	c.pod.Spec.ServiceAccountName = "nobody"
	c.waits(`while fetching service account: serviceaccount "nobody" not found`)
}

// Only root sees the keys, but for the Pod whose they are, and they go with its
// volumes.
func TestPodCertificateKeysAreGuarded(t *testing.T) {
	c := newCertified(t, "ED25519")
	uid := int64(4321)
	c.pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid}
	c.waits(notIssued)
	c.signer.answer(certificatesv1.PodCertificateRequestConditionTypeIssued, "", "", certPEM("leaf", nil), c.m.cfg.Now().Add(time.Hour))
	c.holds(certPEM("leaf", nil))
	var keys []string
	if err := filepath.WalkDir(c.m.PodRunDir("uid-1"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode() != 0o600 {
			t.Errorf("%s: %v", path, fi.Mode())
		}
		keys = append(keys, filepath.Base(path))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(keys); strings.Join(keys, " ") != "bundle.pem chain.pem key.pem t.1.json" {
		t.Errorf("files %q", keys)
	}
	if err := c.m.Release(context.Background(), "uid-1"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(c.m.PodRunDir("uid-1")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
