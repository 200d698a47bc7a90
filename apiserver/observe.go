package apiserver

import (
	"bufio"
	"net"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// observed remembers the status code. It passes Flush and Hijack on.
type observed struct {
	http.ResponseWriter
	code int
}

func (o *observed) WriteHeader(code int) {
	o.code = code
	o.ResponseWriter.WriteHeader(code)
}

func (o *observed) Flush() {
	// A writer that cannot flush has sent what it was given.
	_ = http.NewResponseController(o.ResponseWriter).Flush()
}

func (o *observed) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	o.code = http.StatusSwitchingProtocols
	return http.NewResponseController(o.ResponseWriter).Hijack()
}

func (o *observed) Unwrap() http.ResponseWriter { return o.ResponseWriter }

// known says whether the request is for something that this server has.
func (s *Server) known(info *request.RequestInfo) bool {
	if !info.IsResourceRequest {
		return true
	}
	res, ok := s.api().resources[schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}]
	if !ok || info.Subresource == "" {
		return ok
	}
	_, ok = res.subs[info.Subresource]
	return ok
}
