package apiserver

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// flows tells clients which FlowSchema fits a request, as kube-apiserver does.
// Nothing else follows from it: how many requests run is bounded for all alike.
type flows struct {
	schemas registry.Client[*flowcontrolv1.FlowSchema]
	levels  registry.Client[*flowcontrolv1.PriorityLevelConfiguration]
}

// classify sets the headers of upstream's priority and fairness, if a FlowSchema
// fits. Who has none pays nothing.
func (f *flows) classify(w http.ResponseWriter, info *request.RequestInfo, u user.Info) {
	var best *flowcontrolv1.FlowSchema
	for _, s := range f.schemas.List("") {
		if (best == nil || before(s, best)) && fits(s, info, u) {
			best = s
		}
	}
	if best == nil {
		return
	}
	if level, ok := f.levels.Get("", best.Spec.PriorityLevelConfiguration.Name); ok {
		w.Header().Set(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID, string(best.UID))
		w.Header().Set(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID, string(level.UID))
	}
}

func before(a, b *flowcontrolv1.FlowSchema) bool {
	return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), strings.Compare(a.Name, b.Name)) < 0
}

// fits follows k8s.io/apiserver/pkg/util/flowcontrol/rule.go.
func fits(s *flowcontrolv1.FlowSchema, info *request.RequestInfo, u user.Info) bool {
	return slices.ContainsFunc(s.Spec.Rules, func(r flowcontrolv1.PolicyRulesWithSubjects) bool {
		if !slices.ContainsFunc(r.Subjects, func(s flowcontrolv1.Subject) bool { return isSubject(s, u) }) {
			return false
		}
		if info.IsResourceRequest {
			return slices.ContainsFunc(r.ResourceRules, func(r flowcontrolv1.ResourcePolicyRule) bool { return fitsResource(r, info) })
		}
		return slices.ContainsFunc(r.NonResourceRules, func(r flowcontrolv1.NonResourcePolicyRule) bool { return fitsPath(r, info) })
	})
}

func isSubject(s flowcontrolv1.Subject, u user.Info) bool {
	switch {
	case s.Kind == flowcontrolv1.SubjectKindUser && s.User != nil:
		return s.User.Name == flowcontrolv1.NameAll || s.User.Name == u.GetName()
	case s.Kind == flowcontrolv1.SubjectKindGroup && s.Group != nil:
		return s.Group.Name == flowcontrolv1.NameAll || slices.Contains(u.GetGroups(), s.Group.Name)
	case s.Kind == flowcontrolv1.SubjectKindServiceAccount && s.ServiceAccount != nil:
		ns, name, err := serviceaccount.SplitUsername(u.GetName())
		return err == nil && ns == s.ServiceAccount.Namespace && (s.ServiceAccount.Name == flowcontrolv1.NameAll || s.ServiceAccount.Name == name)
	}
	return false
}

func fitsResource(r flowcontrolv1.ResourcePolicyRule, info *request.RequestInfo) bool {
	resource := info.Resource
	if info.Subresource != "" {
		resource += "/" + info.Subresource
	}
	if !in(r.Verbs, info.Verb) || !in(r.Resources, resource) || !in(r.APIGroups, info.APIGroup) {
		return false
	}
	if info.Namespace == "" {
		return r.ClusterScope
	}
	return in(r.Namespaces, info.Namespace)
}

func fitsPath(r flowcontrolv1.NonResourcePolicyRule, info *request.RequestInfo) bool {
	return in(r.Verbs, info.Verb) && slices.ContainsFunc(r.NonResourceURLs, func(path string) bool {
		prefix := strings.TrimSuffix(strings.TrimSuffix(path, "*"), "/") + "/"
		return path == flowcontrolv1.NonResourceAll || path == info.Path || strings.HasPrefix(info.Path, prefix)
	})
}

// in: a list that is the wildcard, which is the same for all of them, has all.
func in(list []string, s string) bool {
	return len(list) == 1 && list[0] == flowcontrolv1.VerbAll || slices.Contains(list, s)
}
