package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	api "k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/certauthorization"

	"edged/apiserver/registry"
)

// signers asks, beside the right to write the object, for the right to approve,
// sign or attest for the signer that it names. An object's signer never changes.
type signers struct {
	validateOnly
	authz authorizer.UnconditionalAuthorizer
}

func (p signers) Validate(ctx context.Context, a *registry.Attributes) error {
	switch a.Resource.GroupResource() {
	case certificatesv1.Resource("certificatesigningrequests"):
		return p.validateRequest(ctx, a)
	case certificatesv1.Resource("podcertificaterequests"):
		now, ok := a.Object.(*certificatesv1.PodCertificateRequest)
		was, wasOK := a.OldObject.(*certificatesv1.PodCertificateRequest)
		if a.Subresource != "status" || !ok || !wasOK || equality.Semantic.DeepEqual(now.Status, was.Status) {
			return nil
		}
		return p.may(ctx, a, "sign", was.Spec.SignerName, "sign requests with")
	case certificatesv1.Resource("clustertrustbundles"):
		now, ok := a.Object.(*certificatesv1.ClusterTrustBundle)
		if a.Operation != create && a.Operation != update || !ok || now.Spec.SignerName == "" {
			return nil
		}
		if was, ok := a.OldObject.(*certificatesv1.ClusterTrustBundle); ok && now.Spec == was.Spec {
			return nil // its trust stays as it was
		}
		return p.may(ctx, a, "attest", now.Spec.SignerName, "attest for")
	}
	return nil
}

func (p signers) validateRequest(ctx context.Context, a *registry.Attributes) error {
	now, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return nil
	}
	was, isUpdate := a.OldObject.(*certificatesv1.CertificateSigningRequest)
	switch {
	case a.Operation == create && a.Subresource == "":
		return restrictSubject(a, now)
	case !isUpdate:
		return nil
	case a.Subresource == "approval":
		return p.may(ctx, a, "approve", was.Spec.SignerName, "approve requests with")
	case a.Subresource == "status":
		if bytes.Equal(now.Status.Certificate, was.Status.Certificate) && equality.Semantic.DeepEqual(now.Status.Conditions, was.Status.Conditions) {
			return nil
		}
		return p.may(ctx, a, "sign", was.Spec.SignerName, "sign requests with")
	}
	return nil
}

func (p signers) may(ctx context.Context, a *registry.Attributes, verb, signer, what string) error {
	if p.authz == nil || a.User == nil || certauthorization.IsAuthorizedForSignerName(ctx, p.authz, a.User, verb, signer) {
		return nil
	}
	return forbidden(a, fmt.Errorf("user not permitted to %s signerName %q", what, signer))
}

// restrictSubject keeps a signer that approves by itself from making an
// administrator.
func restrictSubject(a *registry.Attributes, csr *certificatesv1.CertificateSigningRequest) error {
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	parsed, err := api.ParseCSR(csr.Spec.Request)
	if err != nil {
		return forbidden(a, fmt.Errorf("failed to parse CSR: %v", err))
	}
	if slices.Contains(parsed.Subject.Organization, user.SystemPrivilegedGroup) {
		return forbidden(a, errors.New("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"))
	}
	return nil
}
