package apiserver_test

import (
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

// TestFlowHeaders: a request is told which FlowSchema fits it best.
func TestFlowHeaders(t *testing.T) {
	e := newEnv(t, nil)
	ctx := t.Context()
	level, err := registry.For[*flowcontrolv1.PriorityLevelConfiguration](e.reg).Create(ctx, &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "some"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: ptr.To[int32](1), LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}}}})
	must(t, err)
	uids := map[string]string{"": ""}
	schema := func(name string, precedence int32, rule flowcontrolv1.PolicyRulesWithSubjects) {
		t.Helper()
		s, err := registry.For[*flowcontrolv1.FlowSchema](e.reg).Create(ctx, &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "some"}, MatchingPrecedence: precedence, Rules: []flowcontrolv1.PolicyRulesWithSubjects{rule}}})
		must(t, err)
		uids[name] = string(s.UID)
	}
	masters := []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: "system:masters"}}}
	schema("pods", 500, flowcontrolv1.PolicyRulesWithSubjects{Subjects: masters, ResourceRules: []flowcontrolv1.ResourcePolicyRule{{
		Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods"}, Namespaces: []string{"default"}}}})
	schema("everything", 600, flowcontrolv1.PolicyRulesWithSubjects{
		Subjects:         []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: "jane"}}},
		ResourceRules:    []flowcontrolv1.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Namespaces: []string{"*"}}},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"*"}, NonResourceURLs: []string{"/healthz"}}}})
	for _, tt := range []struct{ user, path, want string }{
		{"jane", "/api/v1/namespaces/default/pods", "pods"},
		{"jane", "/api/v1/namespaces/other/pods", "everything"},
		{"jane", "/api/v1/pods", ""}, // spans namespaces
		{"jane", "/healthz", "everything"},
		{"jane", "/version", ""},
		{"joe", "/api/v1/namespaces/default/pods", "pods"},
		{"joe", "/api/v1/namespaces/default/configmaps", ""},
	} {
		resp := e.do(e.config(tt.user, "system:masters"), "GET", tt.path, nil)
		wantLevel := ""
		if tt.want != "" {
			wantLevel = string(level.UID)
		}
		if got := resp.Header.Get("X-Kubernetes-Pf-Flowschema-Uid"); got != uids[tt.want] || resp.Header.Get("X-Kubernetes-Pf-Prioritylevel-Uid") != wantLevel {
			t.Errorf("%s gets %s: %v, want %s", tt.user, tt.path, resp.Header, tt.want)
		}
	}
}
