package apiserver

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
)

// serveDiscovery answers /api, /apis and what is below them that is not a
// resource. It returns false for paths that are neither.
//
// Nothing is kept between requests: a document is rendered in less time than
// its TLS record takes, and clients ask with the Etag of what they have.
func (s *Server) serveDiscovery(w http.ResponseWriter, req *http.Request) bool {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	switch {
	case len(parts) == 1 && parts[0] == "api":
		s.serveRoot(w, req, true)
	case len(parts) == 1 && parts[0] == "apis":
		s.serveRoot(w, req, false)
	case len(parts) == 2 && parts[0] == "apis":
		g, ok := s.api().group(parts[1])
		if services := s.others.groups()[parts[1]]; !ok && len(services) > 0 {
			s.writeDiscovery(w, req, legacyForeign(parts[1], services))
			return true
		}
		if !ok || parts[1] == "" {
			return false
		}
		s.writeDiscovery(w, req, legacyGroup(g))
	case len(parts) == 2 && parts[0] == "api" && s.api().servesGroupVersion("api/"+parts[1]):
		s.writeDiscovery(w, req, s.api().legacyResources(schema.GroupVersion{Version: parts[1]}))
	case len(parts) == 3 && parts[0] == "apis" && s.api().servesGroupVersion(strings.Join(parts, "/")):
		s.writeDiscovery(w, req, s.api().legacyResources(schema.GroupVersion{Group: parts[1], Version: parts[2]}))
	default:
		return false
	}
	return true
}

func (c *catalog) group(name string) (group, bool) {
	i := slices.IndexFunc(c.groups, func(g group) bool { return g.name == name })
	if i < 0 {
		return group{}, false
	}
	return c.groups[i], true
}

// serveRoot answers /api and /apis, in the aggregated form if the client takes
// it.
func (s *Server) serveRoot(w http.ResponseWriter, req *http.Request, core bool) {
	opts, ok := negotiation.NegotiateMediaTypeOptions(req.Header.Get("Accept"), discoveryCodecs.SupportedMediaTypes(), discoveryEndpoint{})
	if ok && opts.Convert != nil && req.Method == http.MethodGet {
		s.serveAggregated(w, req, opts.Accepted, core)
		return
	}
	if core {
		versions := &metav1.APIVersions{
			TypeMeta: metav1.TypeMeta{Kind: "APIVersions"},
			Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{
				{ClientCIDR: "0.0.0.0/0", ServerAddress: s.cfg.ServerAddress},
			},
		}
		s.writeDiscovery(w, req, versions)
		return
	}
	list := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	for _, g := range s.api().groups {
		if g.name != "" {
			one := legacyGroup(g)
			one.TypeMeta = metav1.TypeMeta{}
			list.Groups = append(list.Groups, *one)
		}
	}
	foreign := s.others.groups()
	for _, name := range slices.Sorted(maps.Keys(foreign)) {
		if _, ours := s.api().group(name); !ours { // else it lists its own versions alone
			one := legacyForeign(name, foreign[name])
			one.TypeMeta = metav1.TypeMeta{}
			list.Groups = append(list.Groups, *one)
		}
	}
	s.writeDiscovery(w, req, list)
}

func legacyGroup(g group) *metav1.APIGroup {
	out := &metav1.APIGroup{TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: g.name}
	for _, v := range g.versions {
		gv := schema.GroupVersion{Group: g.name, Version: v}
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

// legacyResources lists a group version, subresources beside their parents.
func (c *catalog) legacyResources(gv schema.GroupVersion) *metav1.APIResourceList {
	list := &metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: gv.String(),
		APIResources: []metav1.APIResource{},
	}
	for _, r := range c.resourcesIn(gv) {
		item := metav1.APIResource{
			Name: r.gvr.Resource, SingularName: r.singular(), Namespaced: r.namespaced, Kind: r.gvk.Kind, Verbs: r.verbs(),
		}
		if r.kind != nil {
			item.ShortNames, item.Categories = r.kind.ShortNames, r.kind.Categories
			item.StorageVersionHash = storageVersionHash(r.kind.GVK)
		}
		list.APIResources = append(list.APIResources, item)
		for _, name := range slices.Sorted(maps.Keys(r.subs)) {
			list.APIResources = append(list.APIResources, r.legacySubresource(name))
		}
	}
	return list
}

func (r *resource) legacySubresource(name string) metav1.APIResource {
	sub := r.subs[name]
	item := metav1.APIResource{
		Name: r.gvr.Resource + "/" + name, Namespaced: r.namespaced, Kind: r.gvk.Kind, Verbs: sub.verbs,
	}
	if !sub.gvk.Empty() {
		item.Kind = sub.gvk.Kind
		if sub.gvk.GroupVersion() != r.gvr.GroupVersion() {
			item.Group, item.Version = sub.gvk.Group, sub.gvk.Version
		}
	}
	return item
}

// storageVersionHash tells clients whether two servers store a kind alike.
func storageVersionHash(gvk schema.GroupVersionKind) string {
	sum := sha256.Sum256([]byte(gvk.Group + "/" + gvk.Version + "/" + gvk.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// writeDiscovery writes a document of the unversioned kind of groups, versions
// and resources, which all media types can carry.
func (s *Server) writeDiscovery(w http.ResponseWriter, req *http.Request, obj runtime.Object) {
	if parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/"); req.Method != http.MethodGet && (parts[0] != "apis" || len(parts) > 2) {
		s.respondError(w, req, methodNotAllowed()) // upstream's aggregator answers its own two to any method
		return
	}
	_, info, err := negotiation.NegotiateOutputMediaType(req, discoveryCodecs, negotiation.DefaultEndpointRestrictions)
	if err != nil {
		s.respondError(w, req, err)
		return
	}
	var body strings.Builder
	if err := info.Serializer.Encode(obj, &body); err != nil {
		s.respondError(w, req, err)
		return
	}
	w.Header().Set("Content-Type", info.MediaType)
	s.write(w, req, http.StatusOK, []byte(body.String()))
}

// discoveryEndpoint takes, beside plain media types, the aggregated form.
type discoveryEndpoint struct{}

func (discoveryEndpoint) AllowsMediaTypeTransform(_, _ string, target *schema.GroupVersionKind) bool {
	return target == nil || *target == apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
}
func (discoveryEndpoint) AllowsServerVersion(string) bool { return false }
func (discoveryEndpoint) AllowsStreamSchema(string) bool  { return false }

var discoveryCodecs = newDiscoveryCodecs()

// newDiscoveryCodecs knows the two generations of discovery documents.
func newDiscoveryCodecs() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{}, &metav1.Status{})
	_ = apidiscoveryv2.AddToScheme(scheme) // adds types; cannot fail
	return serializer.NewCodecFactory(scheme)
}

// serveAggregated writes everything at once: groups, versions, resources and
// subresources (KEP-3352).
func (s *Server) serveAggregated(w http.ResponseWriter, req *http.Request, info runtime.SerializerInfo, core bool) {
	list := &apidiscoveryv2.APIGroupDiscoveryList{Items: []apidiscoveryv2.APIGroupDiscovery{}}
	list.SetGroupVersionKind(apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList"))
	for _, g := range s.api().groups {
		if (g.name == "") == core {
			list.Items = append(list.Items, s.api().aggregatedGroup(g))
		}
	}
	if !core {
		foreign := s.others.groups()
		for _, name := range slices.Sorted(maps.Keys(foreign)) {
			if _, ours := s.api().group(name); !ours {
				list.Items = append(list.Items, s.others.aggregated(req.Context(), name, foreign[name]))
			}
		}
	}
	var body strings.Builder
	if err := info.Serializer.Encode(list, &body); err != nil {
		s.respondError(w, req, err)
		return
	}
	h := w.Header()
	h.Add("Vary", "Accept")
	h.Set("Cache-Control", "public")
	h.Set("Content-Type", info.MediaType+";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	etag := fmt.Sprintf("%q", fmt.Sprintf("%X", sha512.Sum512([]byte(body.String()))))
	h.Set("Etag", etag)
	if req.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.write(w, req, http.StatusOK, []byte(body.String()))
}

func (c *catalog) aggregatedGroup(g group) apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		version := apidiscoveryv2.APIVersionDiscovery{Version: v, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, r := range c.resourcesIn(schema.GroupVersion{Group: g.name, Version: v}) {
			version.Resources = append(version.Resources, r.aggregated())
		}
		out.Versions = append(out.Versions, version)
	}
	return out
}

func (r *resource) aggregated() apidiscoveryv2.APIResourceDiscovery {
	out := apidiscoveryv2.APIResourceDiscovery{
		Resource: r.gvr.Resource, Scope: apidiscoveryv2.ScopeCluster, SingularResource: r.singular(),
		Verbs: r.verbs(), ResponseKind: kindOf(r.gvk),
	}
	if r.namespaced {
		out.Scope = apidiscoveryv2.ScopeNamespace
	}
	if r.kind != nil {
		out.ShortNames, out.Categories = r.kind.ShortNames, r.kind.Categories
	}
	for _, name := range slices.Sorted(maps.Keys(r.subs)) {
		sub := r.subs[name]
		gvk := sub.gvk
		if gvk.Empty() {
			gvk = r.gvk
		}
		out.Subresources = append(out.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: name, Verbs: sub.verbs, ResponseKind: kindOf(gvk),
		})
	}
	return out
}

func kindOf(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
	return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
}
