package webhook

import (
	"context"
	"fmt"
	"maps"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// conversionTimeout is upstream's.
const conversionTimeout = 30 * time.Second

// Converter asks the conversion webhooks of CustomResourceDefinitions.
type Converter struct{ Client *Client }

// Convert implements crd.Converter.
func (c Converter) Convert(crd *apiextensionsv1.CustomResourceDefinition, objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error) {
	fail := func(err error) error {
		return fmt.Errorf("conversion webhook for %s/%s failed: %w", crd.Spec.Group, crd.Spec.Names.Kind, err)
	}
	conv := crd.Spec.Conversion
	if conv == nil || conv.Webhook == nil || conv.Webhook.ClientConfig == nil {
		return nil, fail(fmt.Errorf("the definition names none"))
	}
	version := ""
	for _, v := range conv.Webhook.ConversionReviewVersions {
		if v == "v1" || v == "v1beta1" { // of one form
			version = v
			break
		}
	}
	if version == "" {
		return nil, fail(fmt.Errorf("it does not accept known ConversionReview versions (v1, v1beta1)"))
	}
	review := &apiextensionsv1.ConversionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/" + version, Kind: "ConversionReview"},
		Request:  &apiextensionsv1.ConversionRequest{UID: uuid.NewUUID(), DesiredAPIVersion: gv.String()},
	}
	for _, obj := range objs {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return nil, fail(fmt.Errorf("%T is not a custom resource", obj))
		}
		data, err := u.MarshalJSON()
		if err != nil {
			return nil, fail(err)
		}
		review.Request.Objects = append(review.Request.Objects, runtime.RawExtension{Raw: data})
	}
	ctx, cancel := context.WithTimeout(context.Background(), conversionTimeout)
	defer cancel()
	answer := &apiextensionsv1.ConversionReview{}
	if err := c.Client.Post(ctx, conversionTarget(conv.Webhook.ClientConfig), review, answer); err != nil {
		return nil, fail(err)
	}
	out, err := converted(review, answer, gv)
	if err != nil {
		return nil, fail(err)
	}
	for i := range out {
		if err := keepIdentity(objs[i].(*unstructured.Unstructured), out[i].(*unstructured.Unstructured)); err != nil {
			return nil, fail(fmt.Errorf("it returned invalid metadata in object at index %v: %w", i, err))
		}
	}
	return out, nil
}

func conversionTarget(c *apiextensionsv1.WebhookClientConfig) *Target {
	if s := c.Service; s != nil {
		return newTarget(c.CABundle, c.URL, s.Namespace, s.Name, s.Path, s.Port)
	}
	return newTarget(c.CABundle, c.URL, "", "", nil, nil)
}

// converted checks an answer and reads its objects.
func converted(asked, got *apiextensionsv1.ConversionReview, gv schema.GroupVersion) ([]runtime.Object, error) {
	r := got.Response
	switch {
	case r == nil:
		return nil, fmt.Errorf("no response provided")
	case asked.APIVersion == "apiextensions.k8s.io/v1" && r.UID != asked.Request.UID:
		return nil, fmt.Errorf("expected response.uid %q, got %q", asked.Request.UID, r.UID)
	case r.Result.Status != metav1.StatusSuccess:
		return nil, fmt.Errorf("%s", r.Result.Message)
	case len(r.ConvertedObjects) != len(asked.Request.Objects):
		return nil, fmt.Errorf("it returned %d objects, expected %d", len(r.ConvertedObjects), len(asked.Request.Objects))
	}
	out := make([]runtime.Object, len(r.ConvertedObjects))
	for i, raw := range r.ConvertedObjects {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw.Raw); err != nil {
			return nil, fmt.Errorf("it returned invalid converted object at index %v: %w", i, err)
		}
		if u.GroupVersionKind().GroupVersion() != gv {
			return nil, fmt.Errorf("it returned invalid converted object at index %v: invalid groupVersion (expected %v, received %v)", i, gv, u.GroupVersionKind().GroupVersion())
		}
		out[i] = u
	}
	return out, nil
}

// keepIdentity lets a conversion change labels and annotations, and no other
// metadata.
func keepIdentity(was, now *unstructured.Unstructured) error {
	if was.GetKind() != now.GetKind() || was.GetName() != now.GetName() || was.GetNamespace() != now.GetNamespace() || was.GetUID() != now.GetUID() {
		return fmt.Errorf("kind, name, namespace and uid must stay as they are")
	}
	before, _ := was.Object["metadata"].(map[string]any)
	after, _ := now.Object["metadata"].(map[string]any)
	kept := maps.Clone(runtime.DeepCopyJSON(before))
	for _, free := range []string{"labels", "annotations"} {
		if v, ok := after[free]; ok && !equality.Semantic.DeepEqual(v, kept[free]) {
			kept[free] = v
		} else if !ok {
			delete(kept, free)
		}
	}
	now.Object["metadata"] = kept
	return nil
}
