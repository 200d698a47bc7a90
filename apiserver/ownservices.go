package apiserver

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"edged/apiserver/metricsapi"
	"edged/internal/inprocess"
)

// ownService is a group version that this process serves beside the table of kinds, as
// if an APIService said that another does; while one really does, that one is asked. The
// APIService is shown to nobody, so that whoever installs a server of that group can.
type ownService struct {
	service *apiregistrationv1.APIService
	backend *backend
}

// ownServices are those that are asked of devices.
func ownServices(s *Server) map[string]ownService {
	gv := metricsapi.GroupVersion
	svc := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group},
		Spec: apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: 100, VersionPriority: 100,
			Service: &apiregistrationv1.ServiceReference{Namespace: metav1.NamespaceSystem, Name: "edged"}},
		Status: apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue}}},
	}
	h := metricsapi.New(metricsapi.FromRegistry(s.reg, s.nodes, s.logger))
	return map[string]ownService{svc.Name: {svc, &backend{spec: svc.Spec, transport: inprocess.Transport{Handler: h, MaxBytes: maxInProcess}}}}
}

// find returns the APIService of a group version that is not among the table's.
func (g *aggregator) find(name string) (*apiregistrationv1.APIService, bool) {
	if svc, ok := g.services.Get("", name); ok && svc.Spec.Service != nil {
		return svc, true
	}
	own, ok := g.own[name]
	return own.service, ok
}

// isOwn tells a group version of this process from others'.
func (g *aggregator) isOwn(svc *apiregistrationv1.APIService) bool {
	own, ok := g.own[svc.Name]
	return ok && own.service == svc
}

// maxInProcess is above what a thousand Pods make.
const maxInProcess = 16 << 20
