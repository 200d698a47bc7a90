package crd_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/yaml"

	"edged/apiserver/crd"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
)

const definition = `
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList, shortNames: [wi], categories: [all]}
  conversion: {strategy: None}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    selectableFields: [{jsonPath: .spec.color}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [color]
            x-kubernetes-validations: [{rule: "self.replicas <= self.most", message: too many}]
            properties:
              color: {type: string, enum: [red, blue]}
              replicas: {type: integer, default: 1}
              most: {type: integer, default: 5}
              parts: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [name], items: {type: object, required: [name], properties: {name: {type: string}, size: {type: integer}}}}
          status: {type: object, properties: {replicas: {type: integer}}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

var widgets = schema.GroupResource{Group: "example.com", Resource: "widgets"}

// place is a registry with a Manager.
type place struct {
	*testing.T
	reg *registry.Registry
	m   *crd.Manager
}

func newPlace(t *testing.T, store registry.Store) *place {
	t.Helper()
	p := &place{T: t, reg: registrytest.NewWith(t, registry.Config{Store: store})}
	p.m = crd.New(crd.Config{Registry: p.reg, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	p.m.Settled(t.Context())
	return p
}

func (p *place) definitions() registry.Client[*apiextensionsv1.CustomResourceDefinition] {
	return registry.For[*apiextensionsv1.CustomResourceDefinition](p.reg)
}

// define makes the definition and establishes it.
func (p *place) define() {
	p.Helper()
	def := &apiextensionsv1.CustomResourceDefinition{}
	p.must(yaml.UnmarshalStrict([]byte(definition), def))
	_, err := p.definitions().Create(p.Context(), def)
	p.must(err)
	_, err = p.definitions().UpdateStatus(p.Context(), "", "widgets.example.com", func(def *apiextensionsv1.CustomResourceDefinition) error {
		def.Status.AcceptedNames = def.Spec.Names
		def.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{
			{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue}, {Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
		return nil
	})
	p.must(err)
	p.m.Settled(p.Context())
}

func (p *place) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// read makes an object of the text as the HTTP layer does.
func (p *place) read(version, text string) *unstructured.Unstructured {
	p.Helper()
	k, ok := p.reg.Kind(widgets)
	if !ok {
		p.Fatal("widgets are not served")
	}
	obj, err := k.Custom.Read([]byte("apiVersion: example.com/"+version+"\nkind: Widget\n"+text), true, false, schema.GroupVersion{Group: "example.com", Version: version})
	p.must(err)
	return obj.(*unstructured.Unstructured)
}

func (p *place) create(text string) (*unstructured.Unstructured, error) {
	p.Helper()
	obj, err := p.reg.Create(p.Context(), widgets, "ns", p.read("v1", text), registry.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*unstructured.Unstructured), nil
}

func number(u *unstructured.Unstructured, path ...string) int64 {
	n, _, _ := unstructured.NestedInt64(u.Object, path...)
	return n
}

func TestLifeOfACustomResource(t *testing.T) {
	p := newPlace(t, nil)
	if _, err := p.reg.List(t.Context(), widgets, "", registry.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("before its definition: %v", err)
	}
	p.define()
	w, err := p.reg.Watch(t.Context(), widgets, "", registry.ListOptions{})
	p.must(err)
	u, err := p.create("metadata: {name: a}\nspec: {color: red, nonsense: 1}\nstatus: {replicas: 9}")
	p.must(err)
	if number(u, "spec", "replicas") != 1 || u.GetGeneration() != 1 || u.Object["status"] != nil {
		t.Errorf("not defaulted or with a status: %v", u.Object)
	}
	if _, ok := u.Object["spec"].(map[string]any)["nonsense"]; ok {
		t.Errorf("not pruned: %v", u.Object)
	}
	if ev := <-w.C(); ev.Type != watch.Added || ev.Object.(*unstructured.Unstructured).GetResourceVersion() != u.GetResourceVersion() {
		t.Errorf("watch: %v", ev)
	}
	for text, want := range map[string]string{
		"spec: {color: green}":                              "supported values",
		"spec: {}":                                          "Required value",
		"spec: {color: red, replicas: 6}":                   "too many",
		"spec: {color: red, replicas: many}":                "must be of type integer",
		"spec: {color: red, parts: [{name: a}, {name: a}]}": "Duplicate value",
	} {
		if _, err := p.create("metadata: {name: b}\n" + text); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	set := func(sub string, value int64, path ...string) (*unstructured.Unstructured, error) {
		obj, _, err := p.reg.Update(t.Context(), widgets, "ns", "a", sub, func(cur runtime.Object) (runtime.Object, error) {
			return cur, unstructured.SetNestedField(cur.(*unstructured.Unstructured).Object, value, path...)
		}, registry.UpdateOptions{})
		if err != nil {
			return nil, err
		}
		return obj.(*unstructured.Unstructured), nil
	}
	u, err = set("", 3, "spec", "replicas")
	p.must(err)
	if number(u, "spec", "replicas") != 3 || u.GetGeneration() != 2 {
		t.Errorf("updated: %v", u.Object)
	}
	u, err = set("status", 2, "status", "replicas")
	p.must(err)
	if number(u, "status", "replicas") != 2 || u.GetGeneration() != 2 {
		t.Errorf("status: %v", u.Object)
	}
	if u, err = set("", 7, "status", "replicas"); err != nil || number(u, "status", "replicas") != 2 {
		t.Errorf("a status written beside its subresource: %v, %v", u, err)
	}
	if _, err = set("", 6, "spec", "replicas"); !apierrors.IsInvalid(err) {
		t.Errorf("an update against a rule: %v", err)
	}
	p.patches()
	p.selects()
}

func (p *place) patches() {
	p.Helper()
	scaled, _, err := p.reg.Patch(p.Context(), widgets, "ns", "a", "scale", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), registry.PatchOptions{})
	p.must(err)
	if data, _ := json.Marshal(scaled); !strings.Contains(string(data), `"replicas":4`) || !strings.Contains(string(data), `"kind":"Scale"`) {
		p.Errorf("scale: %s", data)
	}
	if _, _, err := p.reg.Patch(p.Context(), widgets, "ns", "a", "", types.StrategicMergePatchType, []byte(`{}`), registry.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
		p.Errorf("a strategic merge patch: %v", err)
	}
	_, _, err = p.reg.Patch(p.Context(), widgets, "ns", "a", "", types.MergePatchType, []byte(`{"spec":{"no":1}}`), registry.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `unknown field "spec.no"`) {
		p.Errorf("a strict patch: %v", err)
	}
	apply := func(manager, spec string) error {
		_, _, err := p.reg.Patch(p.Context(), widgets, "ns", "applied", "", types.ApplyYAMLPatchType,
			[]byte("apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: applied}\nspec: "+spec), registry.PatchOptions{FieldManager: manager})
		return err
	}
	p.must(apply("one", "{color: red, parts: [{name: a, size: 1}]}"))
	p.must(apply("two", "{parts: [{name: b, size: 2}]}"))
	if err := apply("two", "{parts: [{name: a, size: 3}]}"); !apierrors.IsConflict(err) {
		p.Errorf("a field of another manager: %v", err)
	}
	if err := apply("two", "{none: 1}"); err == nil || !strings.Contains(err.Error(), "field not declared in schema") {
		p.Errorf("an unknown field: %v", err)
	}
	got, err := p.reg.Get(p.Context(), widgets, "ns", "applied", metav1.GetOptions{})
	p.must(err)
	parts, _, _ := unstructured.NestedSlice(got.(*unstructured.Unstructured).Object, "spec", "parts")
	if len(parts) != 2 || len(got.(*unstructured.Unstructured).GetManagedFields()) != 2 {
		p.Errorf("applied by two: %v", got)
	}
}

func (p *place) selects() {
	p.Helper()
	l, err := p.reg.List(p.Context(), widgets, "", registry.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.color", "red")})
	p.must(err)
	if len(l.Items) != 2 {
		p.Errorf("by color: %v", l.Items)
	}
	if _, err := p.reg.List(p.Context(), widgets, "", registry.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.most", "5")}); !apierrors.IsBadRequest(err) {
		p.Errorf("by a field that cannot be selected by: %v", err)
	}
}

func TestVersionsWithoutConversion(t *testing.T) {
	p := newPlace(t, nil)
	p.define()
	ctx := request.WithRequestInfo(t.Context(), &request.RequestInfo{APIGroup: "example.com", APIVersion: "v1beta1", Resource: "widgets", Verb: "create", Namespace: "ns", IsResourceRequest: true})
	// The old version's schema knows no rule, the new one's fields are pruned.
	obj, err := p.reg.Create(ctx, widgets, "ns", p.read("v1beta1", "metadata: {name: old}\nspec: {color: green, extra: x}"), registry.CreateOptions{})
	p.must(err)
	u := obj.(*unstructured.Unstructured)
	if u.GetAPIVersion() != "example.com/v1" || u.Object["spec"].(map[string]any)["extra"] != nil {
		t.Errorf("stored: %v", u.Object)
	}
	k, _ := p.reg.Kind(widgets)
	old, err := k.ToVersion(u, schema.GroupVersionKind{Group: "example.com", Version: "v1beta1", Kind: "Widget"})
	p.must(err)
	if old.GetObjectKind().GroupVersionKind().Version != "v1beta1" || u.GetAPIVersion() != "example.com/v1" {
		t.Errorf("shown as %v, changed to %s", old, u.GetAPIVersion())
	}
}

// TestDocument: operations are named as upstream names them, and every schema that is
// referred to is there.
func TestDocument(t *testing.T) {
	p := newPlace(t, nil)
	p.define()
	data, err := p.m.Document(t.Context(), "apis/example.com/v1")
	p.must(err)
	for _, id := range []string{"readExampleComV1NamespacedWidget", "readExampleComV1NamespacedWidgetScale", "listExampleComV1WidgetForAllNamespaces", "deleteExampleComV1CollectionNamespacedWidget", "createExampleComV1NamespacedWidget"} {
		if !strings.Contains(string(data), `"operationId":"`+id+`"`) {
			t.Errorf("no operation %s", id)
		}
	}
	var doc struct {
		Components struct{ Schemas map[string]any }
	}
	p.must(json.Unmarshal(data, &doc))
	for _, m := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllStringSubmatch(string(data), -1) {
		if doc.Components.Schemas[m[1]] == nil {
			t.Errorf("no schema %s", m[1])
		}
	}
}

// TestDocumentOfLowerKind: a kind need not begin with a capital letter.
func TestDocumentOfLowerKind(t *testing.T) {
	p := newPlace(t, nil)
	def := &apiextensionsv1.CustomResourceDefinition{}
	p.must(yaml.UnmarshalStrict([]byte(definition), def))
	def.Name, def.Spec.Names.Plural, def.Spec.Names.Singular, def.Spec.Names.ShortNames = "things.example.com", "things", "thing", nil
	def.Spec.Names.Kind, def.Spec.Names.ListKind, def.Spec.Scope = "thing-crd", "thing-crdList", apiextensionsv1.ClusterScoped
	_, err := p.definitions().Create(p.Context(), def)
	p.must(err)
	_, err = p.definitions().UpdateStatus(p.Context(), "", def.Name, func(def *apiextensionsv1.CustomResourceDefinition) error {
		def.Status.AcceptedNames = def.Spec.Names
		def.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{
			{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue}, {Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
		return nil
	})
	p.must(err)
	p.m.Settled(p.Context())
	data, err := p.m.Document(t.Context(), "apis/example.com/v1")
	p.must(err)
	if !strings.Contains(string(data), `"operationId":"readExampleComV1thing-crd"`) {
		t.Errorf("no operation to read it in %s", data)
	}
	_, paths, err := p.m.Legacy(t.Context())
	p.must(err)
	if paths["/apis/example.com/v1/things/{name}"] == nil {
		t.Errorf("version 2 has no path: %v", paths)
	}
}

// TestDefinitionsComeAndGo follows the rows through a change, a second device's
// start and a deletion.
func TestDefinitionsComeAndGo(t *testing.T) {
	store := registrytest.NewMemStore()
	p := newPlace(t, store)
	var seen []string
	defer p.reg.SubscribeAll(func(e registry.AnyEvent) {
		if e.Kind.Custom != nil {
			seen = append(seen, string(e.Type)) // on the cache's goroutine, or under its lock
		}
	})()
	p.define()
	_, err := p.create("metadata: {name: a}\nspec: {color: red}")
	p.must(err)
	w, err := p.reg.Watch(t.Context(), widgets, "", registry.ListOptions{})
	p.must(err)
	<-w.C()
	version := p.reg.TableVersion()
	_, err = p.definitions().Update(t.Context(), "", "widgets.example.com", func(def *apiextensionsv1.CustomResourceDefinition) error {
		def.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties["most"] = apiextensionsv1.JSONSchemaProps{Type: "integer", Default: &apiextensionsv1.JSON{Raw: []byte("8")}}
		return nil
	})
	p.must(err)
	p.m.Settled(t.Context())
	if _, open := <-w.C(); open {
		t.Error("a watch goes on under another schema")
	}
	if p.reg.TableVersion() == version {
		t.Error("the table did not change")
	}
	u, err := p.create("metadata: {name: b}\nspec: {color: red}")
	p.must(err)
	if number(u, "spec", "most") != 8 {
		t.Errorf("the old default: %v", u.Object)
	}
	if len(p.m.GroupVersions(t.Context())) != 2 {
		t.Errorf("documents: %v", p.m.GroupVersions(t.Context()))
	}
	for path := range p.m.GroupVersions(t.Context()) {
		if doc, err := p.m.Document(t.Context(), path); err != nil || !json.Valid(doc) {
			t.Errorf("%s: %v", path, err)
		}
	}

	second := newPlace(t, store)
	if l, err := second.reg.List(t.Context(), widgets, "ns", registry.ListOptions{}); err != nil || len(l.Items) != 2 {
		t.Errorf("another device has %v, %v", l, err)
	}

	if _, _, err := p.reg.Delete(t.Context(), apiextensionsv1.Resource("customresourcedefinitions"), "", "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.create("metadata: {name: c}\nspec: {color: red}"); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("made while the definition ends: %v", err)
	}
	_, err = p.definitions().Update(t.Context(), "", "widgets.example.com", func(def *apiextensionsv1.CustomResourceDefinition) error {
		def.Finalizers = nil
		return nil
	})
	p.must(err)
	p.m.Settled(t.Context())
	if _, ok := p.reg.Kind(widgets); ok {
		t.Error("served without a definition")
	}
	if got := strings.Join(seen, " "); got != "ADDED ADDED ADDED DELETED DELETED" {
		t.Errorf("subscribers of all kinds saw %s", got)
	}
}
