package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	v1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	webhookerrors "k8s.io/apiserver/pkg/admission/plugin/webhook/errors"
	"k8s.io/apiserver/pkg/warning"
)

// hook is what the two kinds of admission webhooks have in common.
type hook struct {
	name, configuration string
	client              *v1.WebhookClientConfig
	rules               []v1.RuleWithOperations
	failurePolicy       *v1.FailurePolicyType
	matchPolicy         *v1.MatchPolicyType
	namespaces, objects *metav1.LabelSelector
	sideEffects         *v1.SideEffectClass
	timeoutSeconds      *int32
	versions            []string
	conditions          []v1.MatchCondition
	reinvoke            bool
	mutates             bool
}

func (h *hook) ignoresFailure() bool {
	return h.failurePolicy != nil && *h.failurePolicy == v1.Ignore
}

// failure is that a webhook could not be asked, which its failurePolicy is for.
type failure struct {
	name string
	err  error
}

func (f *failure) Error() string { return fmt.Sprintf("failed calling webhook %q: %v", f.name, f.err) }
func (f *failure) Unwrap() error { return f.err }

// ask asks the webhook about a write. An error is a *failure or a refusal; patch
// is what a mutating webhook wants changed.
func (d *Admission) ask(ctx context.Context, h *hook, w *write, m meaning) (patch []byte, err error) {
	if w.a.DryRun && (h.sideEffects == nil || *h.sideEffects != v1.SideEffectClassNone && *h.sideEffects != v1.SideEffectClassNoneOnDryRun) {
		return nil, webhookerrors.NewDryRunUnsupportedErr(h.name)
	}
	review, err := newReview(h, w, m)
	if err != nil {
		return nil, &failure{h.name, err}
	}
	if h.timeoutSeconds != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.timeoutSeconds)*time.Second)
		defer cancel()
	}
	answer := &admissionv1.AdmissionReview{}
	if err := d.client.Post(ctx, targetOf(h.client), review, answer); err != nil {
		return nil, &failure{h.name, fmt.Errorf("failed to call webhook: %w", err)}
	}
	if err := verify(review, answer, h.mutates); err != nil {
		return nil, &failure{h.name, fmt.Errorf("received invalid webhook response: %w", err)}
	}
	for _, text := range answer.Response.Warnings {
		warning.AddWarning(ctx, "", text)
	}
	if !answer.Response.Allowed {
		return nil, webhookerrors.ToStatusErr(h.name, answer.Response.Result)
	}
	return answer.Response.Patch, nil
}

func targetOf(c *v1.WebhookClientConfig) *Target {
	if s := c.Service; s != nil {
		return newTarget(c.CABundle, c.URL, s.Namespace, s.Name, s.Path, s.Port)
	}
	return newTarget(c.CABundle, c.URL, "", "", nil, nil)
}

// newReview is the question, in the first version of reviews that the webhook
// takes and we know. Both have the same form.
func newReview(h *hook, w *write, m meaning) (*admissionv1.AdmissionReview, error) {
	version := ""
	for _, v := range h.versions {
		if v == "v1" || v == "v1beta1" {
			version = v
			break
		}
	}
	if version == "" {
		return nil, errors.New("webhook does not accept known AdmissionReview versions (v1, v1beta1)")
	}
	v, err := w.versioned(m)
	if err != nil {
		return nil, err
	}
	req := &admissionv1.AdmissionRequest{
		UID:         uuid.NewUUID(),
		Kind:        metav1.GroupVersionKind(m.kind),
		Resource:    metav1.GroupVersionResource(m.resource),
		SubResource: w.a.Subresource,
		RequestKind: (*metav1.GroupVersionKind)(&w.gvk), RequestResource: (*metav1.GroupVersionResource)(&w.a.Resource),
		RequestSubResource: w.a.Subresource,
		Name:               w.a.Name, Namespace: v.GetNamespace(), Operation: admissionv1.Operation(w.a.Operation), DryRun: &w.a.DryRun,
	}
	u := v.GetUserInfo()
	req.UserInfo = authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: map[string]authenticationv1.ExtraValue{}}
	for key, val := range u.GetExtra() {
		req.UserInfo.Extra[key] = authenticationv1.ExtraValue(val)
	}
	for _, o := range []struct {
		from runtime.Object
		to   *runtime.RawExtension
	}{{v.VersionedObject.Object(), &req.Object}, {v.VersionedOldObject.Object(), &req.OldObject}, {w.a.Options, &req.Options}} {
		if o.from == nil {
			continue
		}
		if o.to.Raw, err = marshal(o.from); err != nil {
			return nil, err
		}
	}
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/" + version, Kind: "AdmissionReview"}, Request: req,
	}, nil
}

// marshal gives options, which come without it, their TypeMeta.
func marshal(obj runtime.Object) ([]byte, error) {
	switch o := obj.(type) {
	case *metav1.CreateOptions:
		c := *o
		c.TypeMeta = metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "CreateOptions"}
		return json.Marshal(&c)
	case *metav1.UpdateOptions:
		c := *o
		c.TypeMeta = metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "UpdateOptions"}
		return json.Marshal(&c)
	case *metav1.DeleteOptions:
		c := *o
		c.TypeMeta = metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "DeleteOptions"}
		return json.Marshal(&c)
	}
	return json.Marshal(obj)
}

// verify is upstream's check of what came back, which is stricter for v1.
func verify(asked, got *admissionv1.AdmissionReview, mutates bool) error {
	if got.Response == nil {
		return errors.New("webhook response was absent")
	}
	r := got.Response
	if asked.APIVersion == "admission.k8s.io/v1" {
		switch {
		case r.UID != asked.Request.UID:
			return fmt.Errorf("expected response.uid %q, got %q", asked.Request.UID, r.UID)
		case got.APIVersion != asked.APIVersion || got.Kind != asked.Kind:
			return fmt.Errorf("expected webhook response of %s, %s, got %s, %s", asked.APIVersion, asked.Kind, got.APIVersion, got.Kind)
		case mutates && len(r.Patch) > 0 && r.PatchType == nil:
			return errors.New("webhook returned response.patch but not response.patchType")
		case mutates && len(r.Patch) == 0 && r.PatchType != nil:
			return errors.New("webhook returned response.patchType but not response.patch")
		case !mutates && len(r.Patch) > 0:
			return errors.New("validating webhook may not return response.patch")
		case !mutates && r.PatchType != nil:
			return errors.New("validating webhook may not return response.patchType")
		}
	}
	if r.PatchType != nil && *r.PatchType != admissionv1.PatchTypeJSONPatch {
		return fmt.Errorf("unsupported patch type %q", *r.PatchType)
	}
	return nil
}

// closed is what a failure that counts as a refusal looks like.
func closed(err error) error {
	if f := (*failure)(nil); errors.As(err, &f) {
		return apierrors.NewInternalError(f)
	}
	return err
}
