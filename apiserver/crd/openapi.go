package crd

import (
	"cmp"
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"edged/apiserver/openapi"
)

// flavour is a version of OpenAPI.
type flavour struct {
	legacy bool
	refs   string // where schemas are
}

var (
	v2 = flavour{legacy: true, refs: "#/definitions/"}
	v3 = flavour{refs: "#/components/schemas/"}
)

// The schema of a scale, and the document that has it.
const (
	scaleModel    = "io.k8s.api.autoscaling.v1.Scale"
	scaleDocument = "apis/apps/v1"
)

const metaPackage = "io.k8s.apimachinery.pkg.apis.meta.v1."

// modelName is how upstream names a custom resource's schema: its group read
// backwards.
func modelName(group, version, kind string) string {
	parts := strings.Split(group, ".")
	slices.Reverse(parts)
	return strings.Join(parts, ".") + "." + version + "." + kind
}

func (f flavour) ref(name string) *spec.Schema { return spec.RefSchema(f.refs + name) }

// described is a reference with words of its own, which version 3 does not read
// beside a reference.
func (f flavour) described(name, words string) spec.Schema {
	if f.legacy {
		return *f.ref(name).WithDescription(words)
	}
	return spec.Schema{SchemaProps: spec.SchemaProps{Description: words, Default: map[string]any{}, AllOf: []spec.Schema{*f.ref(name)}}}
}

// definitions are the schemas of a version's kind and list, as upstream's
// pkg/controller/openapi/builder publishes them.
func (m *model) definitions(version string, f flavour) (map[string]*spec.Schema, error) {
	internal, err := m.internalSchema(version)
	if err != nil {
		return nil, err
	}
	var structural *structuralschema.Structural
	if internal != nil {
		if s, err := structuralschema.NewStructural(internal); err == nil && len(structuralschema.ValidateStructural(nil, s)) == 0 {
			structural = s.Unfold()
		}
	}
	names := m.crd.Spec.Names
	name := modelName(m.group, version, names.Kind)
	list := new(spec.Schema).Typed("object", "").WithDescription(fmt.Sprintf("%s is a list of %s", names.ListKind, names.Kind)).WithRequired("items")
	list.SetProperty("items", *spec.ArrayProperty(f.ref(name)).WithDescription(fmt.Sprintf(
		"List of %s. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", names.Plural)))
	list.SetProperty("metadata", f.described(metaPackage+"ListMeta", metav1.PartialObjectMetadataList{}.SwaggerDoc()["metadata"]))
	addTypeMeta(list)
	m.mark(list, version, names.ListKind)
	return map[string]*spec.Schema{
		name: m.native(structural, version, f),
		modelName(m.group, version, names.ListKind): list,
	}, nil
}

// native is the schema with what every object has.
func (m *model) native(s *structuralschema.Structural, version string, f flavour) *spec.Schema {
	out := &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
	// Clients take a schema with properties for all that there may be.
	if s != nil && !(f.legacy && (s.XPreserveUnknownFields || m.crd.Spec.PreserveUnknownFields)) {
		if f.legacy {
			s = openapiv2.ToStructuralOpenAPIV2(s)
		}
		out = s.ToKubeOpenAPI()
		out.SetProperty("metadata", f.described(metaPackage+"ObjectMeta", objectMetaDoc))
		addTypeMeta(out)
		addEmbedded(out, f)
	}
	m.mark(out, version, m.crd.Spec.Names.Kind)
	return out
}

func (m *model) mark(s *spec.Schema, version, kind string) {
	s.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{"group": m.group, "version": version, "kind": kind}})
}

var (
	typeMetaDocs  = metav1.TypeMeta{}.SwaggerDoc()
	objectMetaDoc = metav1.PartialObjectMetadata{}.SwaggerDoc()["metadata"]
)

func addTypeMeta(s *spec.Schema) {
	for _, name := range []string{"apiVersion", "kind"} {
		s.SetProperty(name, *new(spec.Schema).Typed("string", "").WithDescription(typeMetaDocs[name]))
	}
}

// addEmbedded gives embedded resources what every object has.
func addEmbedded(s *spec.Schema, f flavour) {
	if s == nil {
		return
	}
	for name, p := range s.Properties {
		addEmbedded(&p, f)
		s.Properties[name] = p
	}
	if s.Items != nil {
		addEmbedded(s.Items.Schema, f)
	}
	if s.AdditionalProperties != nil {
		addEmbedded(s.AdditionalProperties.Schema, f)
	}
	preserves, _ := s.Extensions.GetBool("x-kubernetes-preserve-unknown-fields")
	embedded, _ := s.Extensions.GetBool("x-kubernetes-embedded-resource")
	if !embedded || preserves && f.legacy {
		return
	}
	addTypeMeta(s)
	s.SetProperty("metadata", f.described(metaPackage+"ObjectMeta", objectMetaDoc))
	for _, name := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, name) {
			s.Required = append(s.Required, name)
		}
	}
}

var _ openapi.Extra = (*Manager)(nil)

// served are the rows that are served in a version, in order of their names.
func (m *Manager) served(path string) (rows []*row, version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		for _, gv := range r.kind.Served {
			if "apis/"+gv.String() == path {
				rows, version = append(rows, r), gv.Version
			}
		}
	}
	slices.SortFunc(rows, func(a, b *row) int { return cmp.Compare(a.kind.Resource, b.kind.Resource) })
	return rows, version
}

// GroupVersions implements openapi.Extra. Nothing is rendered for it: a
// document changes when a definition does.
func (m *Manager) GroupVersions(context.Context) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := map[string][]string{}
	for _, r := range m.rows {
		for _, gv := range r.kind.Served {
			path := "apis/" + gv.String()
			from[path] = append(from[path], fmt.Sprintf("%s/%s/%d/%v", r.model.crd.Name, r.uid, r.model.crd.Generation, r.names))
		}
	}
	out := make(map[string]string, len(from))
	for path, parts := range from {
		slices.Sort(parts)
		out[path] = fmt.Sprintf("%X", sha512.Sum512([]byte(strings.Join(parts, "\n"))))
	}
	return out
}

// Document implements openapi.Extra.
func (m *Manager) Document(_ context.Context, path string) ([]byte, error) {
	rows, version := m.served(path)
	if len(rows) == 0 {
		return nil, nil
	}
	all, err := openapi.Schemas(metaDocument)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(name string, _ *spec.Schema) bool { return !strings.HasPrefix(name, "io.k8s.apimachinery.") })
	scales, err := openapi.Schemas(scaleDocument)
	if err != nil {
		return nil, err
	}
	paths := map[string]any{}
	for _, r := range rows {
		defs, err := r.model.definitions(version, v3)
		if err != nil {
			return nil, err
		}
		if sub := r.model.version(version).Subresources; sub != nil && sub.Scale != nil {
			for _, name := range []string{scaleModel, scaleModel + "Spec", scaleModel + "Status"} {
				all[name] = scales[name]
			}
		}
		maps.Copy(all, defs)
		r.model.paths(version, v3, paths)
	}
	return json.Marshal(map[string]any{
		"openapi": "3.0.0", "info": map[string]any{"title": "Kubernetes CRD Swagger", "version": "v0.1.0"},
		"paths": paths, "components": map[string]any{"schemas": all},
	})
}

// Legacy implements openapi.Extra.
func (m *Manager) Legacy(context.Context) (definitions map[string]*spec.Schema, paths map[string]any, err error) {
	m.mu.Lock()
	rows := slices.Collect(maps.Values(m.rows))
	m.mu.Unlock()
	definitions, paths = map[string]*spec.Schema{}, map[string]any{}
	for _, r := range rows {
		for _, gv := range r.kind.Served {
			defs, err := r.model.definitions(gv.Version, v2)
			if err != nil {
				return nil, nil, err
			}
			maps.Copy(definitions, defs)
			r.model.paths(gv.Version, v2, paths)
		}
	}
	return definitions, paths, nil
}

// operation is one verb of a path.
type operation struct {
	method, action string
	id             string   // with a bar for group and version: "list|NamespacedWidget"
	takes, gives   string   // schemas of the body and of the answer
	parameters     []string // beyond dryRun, fieldManager and fieldValidation if it writes
	consumes       []string
}

var plainBodies = []string{"application/json", "application/yaml"}

func (o operation) writes() bool {
	return o.method == "post" || o.method == "put" || o.method == "patch"
}

// paths adds what may be asked of the version's resource.
func (m *model) paths(version string, f flavour, into map[string]any) {
	names := m.crd.Spec.Names
	kind, list := modelName(m.group, version, names.Kind), modelName(m.group, version, names.ListKind)
	status, patch, options := metaPackage+"Status", metaPackage+"Patch", metaPackage+"DeleteOptions"
	listing := []string{"allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds", "watch"}
	deleting := []string{"dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"}
	patches := []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
	root := fmt.Sprintf("/apis/%s/%s/%s", m.group, version, names.Plural)
	scope := ""
	if m.crd.Spec.Scope == apiextensionsv1.NamespaceScoped {
		into[root] = m.path(version, f, nil, operation{"get", "list", "list|" + names.Kind + "ForAllNamespaces", "", list, listing, nil})
		root, scope = fmt.Sprintf("/apis/%s/%s/namespaces/{namespace}/%s", m.group, version, names.Plural), "Namespaced"
	}
	of := func(action, sub string) string { return action + "|" + scope + names.Kind + sub }
	var where []string
	if scope != "" {
		where = []string{"namespace"}
	}
	into[root] = m.path(version, f, where,
		operation{"get", "list", of("list", ""), "", list, listing, nil},
		operation{"post", "post", of("create", ""), kind, kind, nil, plainBodies},
		operation{"delete", "deletecollection", "delete|Collection" + scope + names.Kind, "", status, listing, nil})
	item := slices.Concat([]string{"name"}, where)
	into[root+"/{name}"] = m.path(version, f, item,
		operation{"get", "get", of("read", ""), "", kind, []string{"resourceVersion"}, nil},
		operation{"put", "put", of("replace", ""), kind, kind, nil, plainBodies},
		operation{"patch", "patch", of("patch", ""), patch, kind, []string{"force"}, patches},
		operation{"delete", "delete", of("delete", ""), options, status, deleting, plainBodies})
	sub := m.version(version).Subresources
	if sub == nil {
		return
	}
	for name, schema := range map[string]string{"status": kind, "scale": scaleModel} {
		if name == "status" && sub.Status == nil || name == "scale" && sub.Scale == nil {
			continue
		}
		title := strings.ToUpper(name[:1]) + name[1:]
		into[root+"/{name}/"+name] = m.path(version, f, item,
			operation{"get", "get", of("read", title), "", schema, []string{"resourceVersion"}, nil},
			operation{"put", "put", of("replace", title), schema, schema, nil, plainBodies},
			operation{"patch", "patch", of("patch", title), patch, schema, []string{"force"}, patches})
	}
}

func (m *model) path(version string, f flavour, where []string, ops ...operation) map[string]any {
	out := map[string]any{}
	var common []any
	for _, name := range where {
		common = append(common, f.parameter("path", name))
	}
	out["parameters"] = append(common, f.parameter("query", "pretty"))
	for _, o := range ops {
		out[o.method] = m.operation(version, f, o)
	}
	return out
}

func (m *model) operation(version string, f flavour, o operation) map[string]any {
	parameters := []any{}
	if o.writes() {
		o.parameters = append([]string{"dryRun", "fieldManager", "fieldValidation"}, o.parameters...)
	}
	for _, name := range o.parameters {
		parameters = append(parameters, f.parameter("query", name))
	}
	id := strings.ReplaceAll(m.group, ".", " ")
	first, rest, _ := strings.Cut(id, " ")
	op := map[string]any{
		"operationId": strings.Replace(o.id, "|", strings.ReplaceAll(titles(id+" "+version), " ", ""), 1),
		"tags":        []string{first + strings.ReplaceAll(titles(rest), " ", "") + "_" + version}, "x-kubernetes-action": o.action,
		"x-kubernetes-group-version-kind": map[string]any{"group": m.group, "version": version, "kind": m.crd.Spec.Names.Kind},
	}
	codes := []string{"200"}
	if o.method == "post" || o.method == "put" {
		codes = append(codes, "201")
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, code := range codes {
		responses[code] = f.content("OK", plainBodies, o.gives)
	}
	op["responses"] = responses
	switch {
	case f.legacy:
		op["produces"], op["schemes"] = plainBodies, []string{"https"}
		if o.takes != "" {
			op["consumes"] = o.consumes
			parameters = append(parameters, map[string]any{"in": "body", "name": "body", "required": o.writes(), "schema": f.ref(o.takes)})
		}
	case o.takes != "":
		body := f.content("", o.consumes, o.takes)
		body["required"] = o.writes()
		delete(body, "description")
		op["requestBody"] = body
	}
	op["parameters"] = parameters
	return op
}

func titles(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		words[i] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, " ")
}

// parameter is a parameter by its name; it is a string but for some.
func (f flavour) parameter(in, name string) map[string]any {
	typ := "string"
	switch name {
	case "limit", "timeoutSeconds", "gracePeriodSeconds":
		typ = "integer"
	case "watch", "allowWatchBookmarks", "sendInitialEvents", "force", "orphanDependents":
		typ = "boolean"
	}
	out := map[string]any{"in": in, "name": name}
	if in == "path" {
		out["required"] = true
	}
	if f.legacy {
		out["type"], out["uniqueItems"] = typ, true
	} else {
		out["schema"] = map[string]any{"type": typ, "uniqueItems": true}
	}
	return out
}

func (f flavour) content(description string, types []string, schema string) map[string]any {
	if f.legacy {
		return map[string]any{"description": description, "schema": f.ref(schema)}
	}
	content := map[string]any{}
	for _, t := range types {
		content[t] = map[string]any{"schema": f.ref(schema)}
	}
	return map[string]any{"description": description, "content": content}
}
