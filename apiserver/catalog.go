package apiserver

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/deprecation"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// catalog is what the API offers: every resource in every version under which
// it is served. Discovery is rendered from it and requests are looked up in it.
type catalog struct {
	resources map[schema.GroupVersionResource]*resource
	groups    []group // in discovery's order
}

// group is an API group and its versions, preferred first.
type group struct {
	name     string
	versions []string
}

// resource is one resource in one version.
type resource struct {
	gvr  schema.GroupVersionResource
	gvk  schema.GroupVersionKind
	kind *registry.Kind // nil for a review
	list string         // the kind of a list
	// review answers a resource that is not stored but asked: POST only.
	review     reviewFunc
	namespaced bool
	subs       map[string]subresource
	// deprecated is the warning that goes with every answer; "" is none.
	deprecated string
}

// subresource is how a part of a resource shows in discovery, and whether this
// package answers it.
type subresource struct {
	gvk   schema.GroupVersionKind // zero: the parent's
	verbs metav1.Verbs
}

// described is what more is known of a kind that a CustomResourceDefinition
// describes.
type described interface {
	Table(ctx context.Context, obj runtime.Object, version string) (*metav1.Table, error)
	Deprecated(version string) string
	HasSubresource(version, name string) bool
}

func (r *resource) described() (described, bool) {
	if r.kind == nil || r.kind.Custom == nil {
		return nil, false
	}
	d, ok := r.kind.Custom.(described)
	return d, ok
}

// catalogOf is a catalog and the version of the registry's table it shows.
type catalogOf struct {
	*catalog
	version int64
}

// api is the catalog of now.
func (s *Server) api() *catalog {
	version := s.reg.TableVersion()
	if have := s.catalog.Load(); have != nil && have.version == version {
		return have.catalog
	}
	now := &catalogOf{newCatalog(s.reg.Kinds(), s.tokens != nil), version}
	s.catalog.Store(now)
	return now.catalog
}

// newCatalog lists the kinds and the reviews. The token subresource is there
// only if tokens can be issued.
func newCatalog(kinds []*registry.Kind, tokens bool) *catalog {
	c := &catalog{resources: map[schema.GroupVersionResource]*resource{}}
	for _, k := range kinds {
		for _, gv := range k.ServedVersions() {
			c.add(&resource{gvr: gv.WithResource(k.Resource), gvk: gv.WithKind(k.GVK.Kind), kind: k, namespaced: k.Namespaced, list: k.ListKind})
		}
	}
	for gvk, r := range reviews {
		c.add(&resource{gvr: gvk.GroupVersion().WithResource(r.resource), gvk: gvk, review: r.answer, namespaced: r.namespaced})
	}
	for _, r := range c.resources {
		r.subs = subresourcesOf(r, tokens)
	}
	c.sortGroups()
	return c
}

func (c *catalog) add(r *resource) {
	if r.list == "" {
		r.list = r.gvk.Kind + "List"
	}
	if described, ok := r.described(); ok {
		r.deprecated = described.Deprecated(r.gvk.Version)
	} else if obj, err := codec.Scheme().New(r.gvk); err == nil {
		obj.GetObjectKind().SetGroupVersionKind(r.gvk)
		r.deprecated = deprecation.WarningMessage(obj)
	}
	c.resources[r.gvr] = r
}

var (
	proxyVerbs   = metav1.Verbs{"create", "delete", "get", "patch", "update"}
	connectVerbs = metav1.Verbs{"create", "get"}
	tokenRequest = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	coreV1       = schema.GroupVersion{Version: "v1"}
	httpSubs     = map[schema.GroupVersionResource]map[string]subresource{
		coreV1.WithResource("pods"): {
			"attach":      {coreV1.WithKind("PodAttachOptions"), connectVerbs},
			"exec":        {coreV1.WithKind("PodExecOptions"), connectVerbs},
			"portforward": {coreV1.WithKind("PodPortForwardOptions"), connectVerbs},
			"log":         {coreV1.WithKind("Pod"), metav1.Verbs{"get"}},
			"proxy":       {coreV1.WithKind("PodProxyOptions"), proxyVerbs},
		},
		coreV1.WithResource("services"): {"proxy": {coreV1.WithKind("ServiceProxyOptions"), proxyVerbs}},
		coreV1.WithResource("nodes"):    {"proxy": {coreV1.WithKind("NodeProxyOptions"), proxyVerbs}},
	}
)

// subresourcesOf are the kind's own and those that this package answers.
func subresourcesOf(r *resource, tokens bool) map[string]subresource {
	subs := maps.Clone(httpSubs[r.gvr])
	if subs == nil {
		subs = map[string]subresource{}
	}
	if tokens && r.gvr == coreV1.WithResource("serviceaccounts") {
		subs["token"] = subresource{tokenRequest, metav1.Verbs{"create"}}
	}
	if r.kind == nil {
		return subs
	}
	described, isDescribed := r.described()
	for name, s := range r.kind.Subresources {
		if isDescribed && !described.HasSubresource(r.gvk.Version, name) {
			continue
		}
		subs[name] = subresource{s.GVK, s.Verbs}
	}
	return subs
}

func (c *catalog) sortGroups() {
	versions := map[string]map[string]bool{}
	for gvr := range c.resources {
		if versions[gvr.Group] == nil {
			versions[gvr.Group] = map[string]bool{}
		}
		versions[gvr.Group][gvr.Version] = true
	}
	for name, vs := range versions {
		sorted := slices.SortedFunc(maps.Keys(vs), func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
		c.groups = append(c.groups, group{name, sorted})
	}
	slices.SortFunc(c.groups, func(a, b group) int {
		if n := cmp.Compare(priorityOf(b.name), priorityOf(a.name)); n != 0 {
			return n
		}
		return strings.Compare(a.name, b.name)
	})
}

// servesGroupVersion takes the form of OpenAPI paths: api/v1, apis/apps/v1.
func (c *catalog) servesGroupVersion(path string) bool {
	gv := schema.GroupVersion{}
	switch parts := strings.Split(path, "/"); {
	case len(parts) == 2 && parts[0] == "api":
		gv.Version = parts[1]
	case len(parts) == 3 && parts[0] == "apis":
		gv.Group, gv.Version = parts[1], parts[2]
	default:
		return false
	}
	for _, g := range c.groups {
		if g.name == gv.Group {
			return slices.Contains(g.versions, gv.Version)
		}
	}
	return false
}

// resourcesIn are the resources of a group version in order of their names.
func (c *catalog) resourcesIn(gv schema.GroupVersion) []*resource {
	var out []*resource
	for gvr, r := range c.resources {
		if gvr.GroupVersion() == gv {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *resource) int { return strings.Compare(a.gvr.Resource, b.gvr.Resource) })
	return out
}

// verbs are the verbs of the resource itself.
func (r *resource) verbs() metav1.Verbs {
	if r.kind == nil {
		return metav1.Verbs{"create"}
	}
	return r.kind.ServedVerbs()
}

func (r *resource) singular() string {
	if r.kind == nil {
		return strings.ToLower(r.gvk.Kind)
	}
	return r.kind.Singular
}
