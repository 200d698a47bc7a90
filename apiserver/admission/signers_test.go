package admission_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

func request(t *testing.T, organization ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "c", Organization: organization}}, key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func (c *cluster) grant(name, verb, signer string) {
	c.t.Helper()
	_, err := registry.For[*rbacv1.ClusterRole](c.reg).Create(c.t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: []string{signer}, Verbs: []string{verb}}},
	})
	must(c.t, err)
	_, err = registry.For[*rbacv1.ClusterRoleBinding](c.reg).Create(c.t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: name}},
	})
	must(c.t, err)
}

func TestSignersNeedTheirOwnRight(t *testing.T) {
	c := newCluster(t, nil)
	c.grant("approver", "approve", "example.com/*")
	c.grant("signer", "sign", "example.com/one")
	create := func(name, signer string, organization ...string) error {
		_, err := registry.For[*certificatesv1.CertificateSigningRequest](c.reg).Create(t.Context(), &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: signer, Request: request(t, organization...), Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}},
		})
		return err
	}
	must(t, create("csr", "example.com/one"))
	if err := create("admin", certificatesv1.KubeAPIServerClientSignerName, "system:masters"); !apierrors.IsForbidden(err) {
		t.Errorf("a request to be an administrator: %v", err)
	}
	write := func(who, sub string) error {
		ctx := registry.WithUser(t.Context(), &user.DefaultInfo{Name: who, Groups: []string{user.AllAuthenticated}})
		_, _, err := c.reg.Update(ctx, certificatesv1.Resource("certificatesigningrequests"), "", "csr", sub, func(o runtime.Object) (runtime.Object, error) {
			csr := o.(*certificatesv1.CertificateSigningRequest)
			kind := certificatesv1.CertificateApproved
			if sub == "status" {
				kind = certificatesv1.CertificateFailed
			}
			csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: corev1.ConditionTrue, Reason: "r"})
			return csr, nil
		}, registry.UpdateOptions{})
		return err
	}
	for _, try := range []struct {
		who, sub string
		allowed  bool
	}{{"jane", "approval", false}, {"signer", "approval", false}, {"approver", "approval", true}, {"approver", "status", false}, {"signer", "status", true}} {
		if err := write(try.who, try.sub); (err == nil) != try.allowed || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s writes %s: %v, allowed %v", try.who, try.sub, err, try.allowed)
		}
	}
}

func TestAdminAccessToDevicesNeedsALabel(t *testing.T) {
	for _, labels := range []map[string]string{nil, {resourcev1.DRAAdminNamespaceLabelKey: "true"}} {
		c := newCluster(t, labels)
		_, err := registry.For[*resourcev1.ResourceClaim](c.reg).Create(t.Context(), &resourcev1.ResourceClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"},
			Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{
				Name: "r", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "d", AdminAccess: ptr.To(true)}}}}},
		})
		if labels == nil && !apierrors.IsForbidden(err) || labels != nil && err != nil {
			t.Errorf("namespace with %v: %v", labels, err)
		}
	}
}

func TestPolicyParametersMustBeReadable(t *testing.T) {
	c := newCluster(t, nil)
	policy := func(who string) error {
		ctx := registry.WithUser(t.Context(), &user.DefaultInfo{Name: who, Groups: []string{user.AllAuthenticated}})
		_, err := c.reg.Create(ctx, admissionregistrationv1.Resource("validatingadmissionpolicies"), "", &admissionregistrationv1.ValidatingAdmissionPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: who},
			Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
				ParamKind:   &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "Secret"},
				Validations: []admissionregistrationv1.Validation{{Expression: "params.data.size() > 0"}},
				MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
					RuleWithOperations: admissionregistrationv1.RuleWithOperations{Operations: []admissionregistrationv1.OperationType{"*"},
						Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}}}},
			},
		}, registry.CreateOptions{})
		return err
	}
	_, err := registry.For[*rbacv1.ClusterRole](c.reg).Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}}})
	must(t, err)
	_, err = registry.For[*rbacv1.ClusterRoleBinding](c.reg).Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"}, RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "reader"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: "reader"}}})
	must(t, err)
	if err := policy("jane"); !apierrors.IsForbidden(err) {
		t.Errorf("who may not read Secrets: %v", err)
	}
	if err := policy("reader"); err != nil {
		t.Errorf("who may: %v", err)
	}
}
