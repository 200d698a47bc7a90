package kinds

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	api "k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/apis/certificates/validation"
	"k8s.io/kubernetes/pkg/registry/certificates/clustertrustbundle"
	"k8s.io/kubernetes/pkg/registry/certificates/podcertificaterequest"
	"k8s.io/utils/clock"

	"edged/apiserver/registry"
)

// certificates are the kinds of the group certificates.k8s.io. Who may approve and
// sign is checked by admission, which knows the authorizer.
func certificates() []*registry.Kind {
	v1 := certificatesv1.SchemeGroupVersion
	bundles := row[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](v1, "clustertrustbundles", clustertrustbundle.Strategy)
	bundles.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"spec.signerName": obj.(*certificatesv1.ClusterTrustBundle).Spec.SignerName}
	}
	bundles.SelectableFields = []string{"spec.signerName"}

	s := podcertificaterequest.NewStrategy()
	pods := withStatus(row[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](v1, "podcertificaterequests", s),
		podcertificaterequest.NewStatusStrategy(s, checkedByAdmission{}, clock.RealClock{}))
	pods.Fields = func(obj runtime.Object) fields.Set {
		spec := &obj.(*certificatesv1.PodCertificateRequest).Spec
		return fields.Set{"spec.signerName": spec.SignerName, "spec.podName": spec.PodName, "spec.nodeName": string(spec.NodeName)}
	}
	pods.SelectableFields = []string{"spec.signerName", "spec.podName", "spec.nodeName"}
	return []*registry.Kind{signingRequests(), bundles, pods}
}

// checkedByAdmission stands for the authorizer where a strategy wants one.
type checkedByAdmission struct{}

func (checkedByAdmission) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	return authorizer.DecisionAllow, "", nil
}

func signingRequests() *registry.Kind {
	const apiVersion = "certificates.k8s.io/v1"
	k := row[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](certificatesv1.SchemeGroupVersion,
		"certificatesigningrequests", signingRequestStrategy{newBase(false).resets(apiVersion, "spec", "status")}, "csr")
	k.Fields = func(obj runtime.Object) fields.Set {
		return fields.Set{"spec.signerName": obj.(*certificatesv1.CertificateSigningRequest).Spec.SignerName}
	}
	k.SelectableFields = []string{"spec.signerName"}
	withStatus(k, signingStatusStrategy{signingRequestStrategy{newBase(false).resetsPaths(apiVersion, []string{"spec"}, []string{"status", "conditions"})}})
	return withSubresource(k, "approval", &registry.Subresource{
		Strategy: approvalStrategy{signingRequestStrategy{newBase(false).resetsPaths(apiVersion, []string{"spec"}, []string{"status", "certificate"})}},
		Verbs:    []string{"get", "patch", "update"},
	})
}

// signingRequestStrategy follows pkg/registry/certificates/certificates.
type signingRequestStrategy struct{ base }

// PrepareForCreate notes who asks: a signer decides by that.
func (signingRequestStrategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	csr := obj.(*api.CertificateSigningRequest)
	csr.Spec.Username, csr.Spec.UID, csr.Spec.Groups, csr.Spec.Extra = "", "", nil, nil
	if u, ok := request.UserFrom(ctx); ok {
		csr.Spec.Username, csr.Spec.UID, csr.Spec.Groups = u.GetName(), u.GetUID(), u.GetGroups()
		if extra := u.GetExtra(); len(extra) > 0 {
			csr.Spec.Extra = make(map[string]api.ExtraValue, len(extra))
			for k, v := range extra {
				csr.Spec.Extra[k] = v
			}
		}
	}
	csr.Status = api.CertificateSigningRequestStatus{Conditions: []api.CertificateSigningRequestCondition{}}
}

// PrepareForUpdate: a request never changes but by its subresources.
func (signingRequestStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	csr, was := obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest)
	csr.Spec, csr.Status = was.Spec, was.Status
}

func (signingRequestStrategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateCertificateSigningRequestCreate(obj.(*api.CertificateSigningRequest))
}

func (signingRequestStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateCertificateSigningRequestUpdate(obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest))
}

type signingStatusStrategy struct{ signingRequestStrategy }

// PrepareForUpdate keeps approvals and denials as they are; adding or removing
// one fails validation.
func (signingStatusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	csr, was := obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest)
	csr.Spec = was.Spec
	keepConditions(csr, was, api.CertificateApproved)
	keepConditions(csr, was, api.CertificateDenied)
	stampConditions(ctx, csr, was)
}

func (signingStatusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateCertificateSigningRequestStatusUpdate(obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest))
}

type approvalStrategy struct{ signingRequestStrategy }

func (approvalStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	csr, was := obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest)
	stampConditions(ctx, csr, was)
	conditions := csr.Status.Conditions
	csr.Spec, csr.Status = was.Spec, was.Status
	csr.Status.Conditions = conditions
}

func (approvalStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateCertificateSigningRequestApprovalUpdate(obj.(*api.CertificateSigningRequest), old.(*api.CertificateSigningRequest))
}

// keepConditions copies the conditions of a type from was, if there are as many.
func keepConditions(csr, was *api.CertificateSigningRequest, typ api.RequestConditionType) {
	before, now := conditionsOf(was, typ), conditionsOf(csr, typ)
	if len(before) != len(now) {
		return
	}
	for i := range now {
		*now[i] = *before[i]
	}
}

func conditionsOf(csr *api.CertificateSigningRequest, typ api.RequestConditionType) []*api.CertificateSigningRequestCondition {
	var out []*api.CertificateSigningRequestCondition
	for i := range csr.Status.Conditions {
		if c := &csr.Status.Conditions[i]; c.Type == typ {
			out = append(out, c)
		}
	}
	return out
}

// stampConditions sets the times that the writer left out.
func stampConditions(ctx context.Context, csr, was *api.CertificateSigningRequest) {
	now := metav1.NewTime(registry.NowOf(ctx)).Rfc3339Copy()
	for i := range csr.Status.Conditions {
		c := &csr.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = now
		for _, old := range was.Status.Conditions {
			if old.Type == c.Type && old.Status == c.Status && !old.LastTransitionTime.IsZero() {
				c.LastTransitionTime = old.LastTransitionTime
				break
			}
		}
	}
}
