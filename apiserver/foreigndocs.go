package apiserver

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"edged/apiserver/openapi"
)

// maxDocument bounds an OpenAPI document of another server: Kubernetes' own of
// version 2 has 6 MB.
const maxDocument = 16 << 20

// foreignDocuments is what the OpenAPI documents have of aggregated APIs. Documents
// are asked for when somebody wants them and are not kept; a server that does not
// answer is left out.
type foreignDocuments struct{ *aggregator }

var _ openapi.Extra = foreignDocuments{}

// GroupVersions implements openapi.Extra.
func (d foreignDocuments) GroupVersions(ctx context.Context) map[string]string {
	out := map[string]string{}
	d.each(func(path string, _ *apiregistrationv1.APIService, b *backend) {
		if hash := b.describe(ctx, path); hash != "" {
			out[path] = hash
		}
	})
	return out
}

// each calls f for every group version of others that is available.
func (d foreignDocuments) each(f func(path string, svc *apiregistrationv1.APIService, b *backend)) {
	for name, services := range d.groups() {
		for _, svc := range services {
			if !isAvailable(svc) || d.isOwn(svc) { // this process' own has no document
				continue
			}
			if b, err := d.backend(svc); err == nil {
				f("apis/"+name+"/"+svc.Spec.Version, svc, b)
			}
		}
	}
}

// describe is the hash that the server's own index has of a document, unless that
// is known since a moment ago.
func (b *backend) describe(ctx context.Context, path string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.describedAt) < serviceCheck {
		return b.described
	}
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	err := b.fetch(ctx, "/openapi/v3", maxDiscovery, &index)
	b.described, b.describedAt = "", time.Now()
	if found, ok := index.Paths[path]; err == nil && ok {
		b.described = fmt.Sprintf("%X", sha512.Sum512([]byte(found.ServerRelativeURL)))
		if u, err := url.Parse(found.ServerRelativeURL); err == nil && u.Query().Get("hash") != "" {
			b.described = u.Query().Get("hash")
		}
	}
	return b.described
}

// Document implements openapi.Extra.
func (d foreignDocuments) Document(ctx context.Context, path string) (doc []byte, err error) {
	d.each(func(of string, _ *apiregistrationv1.APIService, b *backend) {
		if of == path {
			var raw json.RawMessage
			err = b.fetch(ctx, "/openapi/v3/"+path, maxDocument, &raw)
			doc = raw
		}
	})
	return doc, err
}

// Legacy implements openapi.Extra: the paths of the groups that are the server's,
// and the definitions that are not Kubernetes' own.
func (d foreignDocuments) Legacy(ctx context.Context) (definitions map[string]*spec.Schema, paths map[string]any, err error) {
	definitions, paths = map[string]*spec.Schema{}, map[string]any{}
	type document struct {
		Definitions map[string]*spec.Schema    `json:"definitions"`
		Paths       map[string]json.RawMessage `json:"paths"`
	}
	asked := map[apiregistrationv1.ServiceReference]*document{} // one server may have several
	d.each(func(path string, svc *apiregistrationv1.APIService, b *backend) {
		ref := *svc.Spec.Service
		ref.Port = nil
		doc := asked[ref]
		if doc == nil {
			doc = &document{}
			if err := b.fetch(ctx, "/openapi/v2", maxDocument, doc); err != nil {
				d.logger.Debug("an aggregated API has no OpenAPI document of version 2", "apiservice", svc.Name, "err", err)
				doc = &document{}
			}
			asked[ref] = doc
		}
		maps.Copy(definitions, doc.Definitions)
		for p, item := range doc.Paths {
			if p == "/apis/"+svc.Spec.Group+"/" || strings.HasPrefix(p, "/"+path+"/") {
				paths[p] = item
			}
		}
	})
	if len(definitions) == 0 {
		return definitions, paths, nil
	}
	own, err := openapi.Defined()
	maps.DeleteFunc(definitions, func(name string, _ *spec.Schema) bool { return own[name] })
	return definitions, paths, err
}
