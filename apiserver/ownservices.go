package apiserver

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"edged/apiserver/metricsapi"
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
	return map[string]ownService{svc.Name: {svc, &backend{spec: svc.Spec, transport: inProcess{h}}}}
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

// inProcess hands requests to a handler and gives back what it wrote, whole.
type inProcess struct{ http.Handler }

func (inProcess) CloseIdleConnections() {}

// maxInProcess is above what a thousand Pods make.
const maxInProcess = 16 << 20

func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	a := &written{header: http.Header{}, code: http.StatusOK}
	t.ServeHTTP(a, req)
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{
		Status: strconv.Itoa(a.code) + " " + http.StatusText(a.code), StatusCode: a.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: req,
	}, nil
}

// written is an answer that is kept.
type written struct {
	header http.Header
	code   int
	body   bytes.Buffer
	err    error
}

var errLongAnswer = errors.New("the answer is too long")

func (a *written) Header() http.Header  { return a.header }
func (a *written) WriteHeader(code int) { a.code = code }
func (a *written) Write(p []byte) (int, error) {
	if a.body.Len()+len(p) > maxInProcess {
		a.err = errLongAnswer
		return 0, a.err
	}
	return a.body.Write(p)
}
