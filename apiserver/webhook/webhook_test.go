package webhook_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/utils/ptr"

	"edged/apiserver/admission"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/apiserver/webhook"
)

// place is a registry whose writes are asked about, and a server that answers.
type place struct {
	*testing.T
	reg *registry.Registry
	ca  []byte

	mu     sync.Mutex
	answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse
	asked  []admissionv1.AdmissionRequest
	dialed []string
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	return authorizer.DecisionAllow, "", nil
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{T: t, reg: registrytest.New(t)}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	srv.StartTLS()
	t.Cleanup(srv.Close)
	p.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	client := webhook.NewClient(p.reg, func(ctx context.Context, network, address string) (net.Conn, error) {
		p.mu.Lock()
		p.dialed = append(p.dialed, address)
		p.mu.Unlock()
		return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
	})
	configured := webhook.New(webhook.Config{Registry: p.reg, Client: client, Authorizer: allowAll{}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { p.must(errors.Join(client.Close(), configured.Close())) })
	chain, err := admission.New(admission.Config{Registry: p.reg, Configured: configured})
	p.must(err)
	p.reg.SetAdmission(chain)
	_, err = registry.For[*corev1.Namespace](p.reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"tier": "one"}}})
	p.must(err)
	return p
}

func (p *place) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *place) serve(w http.ResponseWriter, req *http.Request) {
	review := &admissionv1.AdmissionReview{}
	if err := json.NewDecoder(req.Body).Decode(review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, *review.Request)
	answer := p.answer
	p.mu.Unlock()
	resp := answer(review.Request)
	if resp == nil {
		http.Error(w, "no", http.StatusInternalServerError)
		return
	}
	resp.UID = review.Request.UID
	json.NewEncoder(w).Encode(&admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp})
}

func (p *place) respond(f func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer, p.asked = f, nil
}

func (p *place) questions() []admissionv1.AdmissionRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func rule(resource string, ops ...v1.OperationType) []v1.RuleWithOperations {
	return []v1.RuleWithOperations{{Operations: ops, Rule: v1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"v1"}, Resources: []string{resource}}}}
}

// target is the server by its URL; its certificate is for example.com.
func (p *place) target() v1.WebhookClientConfig {
	return v1.WebhookClientConfig{URL: ptr.To("https://example.com/"), CABundle: p.ca}
}

func (p *place) configMap(name string, opts registry.CreateOptions) (*corev1.ConfigMap, error) {
	p.Helper()
	ctx := registry.WithUser(p.Context(), &user.DefaultInfo{Name: "jane", Groups: []string{user.SystemPrivilegedGroup}})
	obj, err := p.reg.Create(ctx, corev1.Resource("configmaps"), "ns", &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "a"}}, Data: map[string]string{"k": "v"}}, opts)
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.ConfigMap), nil
}

func patchOf(patch string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(patch), PatchType: ptr.To(admissionv1.PatchTypeJSONPatch)}
}

func allowed(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func TestMutatingWebhook(t *testing.T) {
	p := newPlace(t)
	p.respond(func(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return patchOf(`[{"op":"add","path":"/data/added","value":"` + req.UserInfo.Username + `"}]`)
	})
	_, err := registry.For[*v1.MutatingWebhookConfiguration](p.reg).Create(t.Context(), &v1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Webhooks: []v1.MutatingWebhook{{
			Name: "m.example.com", ClientConfig: p.target(), Rules: rule("configmaps", v1.Create), AdmissionReviewVersions: []string{"v1"}, SideEffects: ptr.To(v1.SideEffectClassNone),
		}, {
			Name: "none.example.com", ClientConfig: p.target(), Rules: rule("configmaps", v1.Create), AdmissionReviewVersions: []string{"v1"}, SideEffects: ptr.To(v1.SideEffectClassNone),
			MatchConditions: []v1.MatchCondition{{Name: "never", Expression: "request.userInfo.username != 'jane'"}},
		}, {
			Name: "elsewhere.example.com", ClientConfig: p.target(), Rules: rule("configmaps", v1.Create), AdmissionReviewVersions: []string{"v1"}, SideEffects: ptr.To(v1.SideEffectClassNone),
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "two"}},
		}},
	})
	p.must(err)
	cm, err := p.configMap("a", registry.CreateOptions{})
	p.must(err)
	asked := p.questions()
	if cm.Data["added"] != "jane" || len(asked) != 1 {
		t.Fatalf("%v after %d questions", cm.Data, len(asked))
	}
	q := asked[0]
	if q.Kind.Kind != "ConfigMap" || q.Resource.Resource != "configmaps" || q.Namespace != "ns" || q.Name != "a" || q.Operation != admissionv1.Create ||
		!strings.Contains(string(q.Object.Raw), `"kind":"ConfigMap"`) || !strings.Contains(string(q.Options.Raw), "CreateOptions") || q.OldObject.Raw != nil {
		t.Errorf("asked %+v", q)
	}
}

func TestValidatingWebhook(t *testing.T) {
	p := newPlace(t)
	configs := registry.For[*v1.ValidatingWebhookConfiguration](p.reg)
	_, err := configs.Create(t.Context(), &v1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Webhooks: []v1.ValidatingWebhook{{
			Name: "v.example.com", ClientConfig: p.target(), Rules: rule("configmaps", v1.Create, v1.Delete), AdmissionReviewVersions: []string{"v1beta2", "v1"},
			SideEffects: ptr.To(v1.SideEffectClassNoneOnDryRun), TimeoutSeconds: ptr.To[int32](5),
		}},
	})
	p.must(err)
	p.respond(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: "not today", Code: 403}}
	})
	if _, err := p.configMap("a", registry.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `admission webhook "v.example.com" denied the request: not today`) {
		t.Errorf("a refusal: %v", err)
	}
	p.respond(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return nil })
	if _, err := p.configMap("a", registry.CreateOptions{}); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "v.example.com"`) {
		t.Errorf("a failure: %v", err)
	}
	change := func(f func(*v1.ValidatingWebhook)) {
		t.Helper()
		_, err := configs.Update(t.Context(), "", "v", func(c *v1.ValidatingWebhookConfiguration) error { f(&c.Webhooks[0]); return nil })
		p.must(err)
	}
	change(func(h *v1.ValidatingWebhook) { h.FailurePolicy = ptr.To(v1.Ignore) })
	if _, err := p.configMap("a", registry.CreateOptions{}); err != nil {
		t.Errorf("a failure that is passed over: %v", err)
	}
	p.respond(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return patchOf(`[]`) })
	change(func(h *v1.ValidatingWebhook) { h.FailurePolicy = ptr.To(v1.Fail) })
	if _, err := p.configMap("b", registry.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "validating webhook may not return response.patch") {
		t.Errorf("a patch: %v", err)
	}
	p.respond(allowed)
	if _, err := p.configMap("b", registry.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || len(p.questions()) != 1 || !*p.questions()[0].DryRun {
		t.Errorf("a dry run: %v, %v", err, p.questions())
	}
	p.respond(allowed)
	p.must(registry.For[*corev1.ConfigMap](p.reg).Delete(t.Context(), "ns", "a", metav1.DeleteOptions{}))
	if q := p.questions(); len(q) != 1 || q[0].Object.Raw != nil || !strings.Contains(string(q[0].OldObject.Raw), `"name":"a"`) {
		t.Errorf("asked about a deletion: %+v", q)
	}
	// Nobody is asked about who is asked.
	p.respond(func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{}
	})
	change(func(h *v1.ValidatingWebhook) { h.Rules = rule("*", v1.OperationAll) })
	change(func(h *v1.ValidatingWebhook) { h.TimeoutSeconds = ptr.To[int32](6) })
	if len(p.questions()) != 0 {
		t.Errorf("asked about configurations: %v", p.questions())
	}
}

// TestWebhookBehindAService: the connection goes to a ready endpoint, under the
// Service's name.
func TestWebhookBehindAService(t *testing.T) {
	p := newPlace(t)
	p.respond(allowed)
	_, err := registry.For[*corev1.Service](p.reg).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hook"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 8443}}}})
	p.must(err)
	_, err = registry.For[*discoveryv1.EndpointSlice](p.reg).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hook-1", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To[int32](9443)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"10.42.1.7"}}}})
	p.must(err)
	_, err = registry.For[*v1.ValidatingWebhookConfiguration](p.reg).Create(t.Context(), &v1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Webhooks: []v1.ValidatingWebhook{{
			Name:                    "v.example.com",
			ClientConfig:            v1.WebhookClientConfig{Service: &v1.ServiceReference{Namespace: "ns", Name: "hook", Path: ptr.To("/x"), Port: ptr.To[int32](8443)}, CABundle: p.ca},
			AdmissionReviewVersions: []string{"v1"}, SideEffects: ptr.To(v1.SideEffectClassNone), Rules: rule("configmaps", v1.Create),
		}},
	})
	p.must(err)
	_, err = p.configMap("a", registry.CreateOptions{})
	// The server's certificate is for another name: that it is refused shows which
	// one was asked for.
	if err == nil || !strings.Contains(err.Error(), "hook.ns.svc") {
		t.Errorf("the name of the Service: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.dialed) == 0 || p.dialed[0] != "10.42.1.7:9443" {
		t.Errorf("dialed %v", p.dialed)
	}
}

func TestPolicies(t *testing.T) {
	p := newPlace(t)
	match := &v1.MatchResources{ResourceRules: []v1.NamedRuleWithOperations{{RuleWithOperations: rule("configmaps", v1.Create, v1.Update)[0]}}}
	_, err := registry.For[*v1.ValidatingAdmissionPolicy](p.reg).Create(t.Context(), &v1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "short"},
		Spec: v1.ValidatingAdmissionPolicySpec{
			MatchConstraints: match, ParamKind: &v1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			Variables:   []v1.Variable{{Name: "size", Expression: "size(object.metadata.name)"}},
			Validations: []v1.Validation{{Expression: "variables.size <= int(params.data.limit)", MessageExpression: "'longer than ' + params.data.limit"}},
		},
	})
	p.must(err)
	_, err = registry.For[*v1.MutatingAdmissionPolicy](p.reg).Create(t.Context(), &v1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "label"},
		Spec: v1.MutatingAdmissionPolicySpec{
			MatchConstraints: match, ReinvocationPolicy: v1.NeverReinvocationPolicy,
			Mutations: []v1.Mutation{
				{PatchType: v1.PatchTypeApplyConfiguration, ApplyConfiguration: &v1.ApplyConfiguration{Expression: `Object{metadata: Object.metadata{labels: {"by": "policy"}}}`}},
				{PatchType: v1.PatchTypeJSONPatch, JSONPatch: &v1.JSONPatch{Expression: `[JSONPatch{op: "add", path: "/data/json", value: "patch"}]`}},
			},
		},
	})
	p.must(err)
	if cm, err := p.configMap("without-a-binding", registry.CreateOptions{}); err != nil || cm.Labels["by"] != "" {
		t.Fatalf("without a binding: %v, %v", cm, err)
	}
	limit := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "limit"}, Data: map[string]string{"limit": "5"}}
	_, err = registry.For[*corev1.ConfigMap](p.reg).Create(t.Context(), limit)
	p.must(err)
	_, err = registry.For[*v1.ValidatingAdmissionPolicyBinding](p.reg).Create(t.Context(), &v1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "short"},
		Spec: v1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "short", ValidationActions: []v1.ValidationAction{v1.Deny},
			ParamRef: &v1.ParamRef{Name: "limit", ParameterNotFoundAction: ptr.To(v1.DenyAction)}},
	})
	p.must(err)
	_, err = registry.For[*v1.MutatingAdmissionPolicyBinding](p.reg).Create(t.Context(), &v1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "label"}, Spec: v1.MutatingAdmissionPolicyBindingSpec{PolicyName: "label"},
	})
	p.must(err)
	cm, err := p.configMap("a", registry.CreateOptions{})
	p.must(err)
	if cm.Labels["by"] != "policy" || cm.Labels["app"] != "a" || cm.Data["json"] != "patch" {
		t.Errorf("changed to %v, %v", cm.Labels, cm.Data)
	}
	if _, err := p.configMap("longer", registry.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'short' with binding 'short' denied request: longer than 5") {
		t.Errorf("a longer name: %v", err)
	}
	// A patch is a write, too.
	_, _, err = p.reg.Patch(t.Context(), corev1.Resource("configmaps"), "ns", "without-a-binding", "", types.MergePatchType, []byte(`{"data":{"k":"w"}}`), registry.PatchOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("a patch against the policy: %v", err)
	}
	if _, _, err := p.reg.Update(t.Context(), corev1.Resource("configmaps"), "ns", "a", "", func(cur runtime.Object) (runtime.Object, error) {
		cur.(*corev1.ConfigMap).Data["k"] = "w"
		return cur, nil
	}, registry.UpdateOptions{}); err != nil {
		t.Errorf("an update: %v", err)
	}
}
