package crd

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	api "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/client-go/util/jsonpath"
)

// validatorsIdle is how long what validates objects stays in memory after the
// last write: the rules of one large definition can take megabytes.
const validatorsIdle = 5 * time.Minute

// model is registry.Custom for the objects of one definition.
type model struct {
	crd       *apiextensionsv1.CustomResourceDefinition // shared with the cache
	group     string
	kind      string // as accepted
	storage   string // version
	converter Converter
	logger    *slog.Logger

	mu         sync.Mutex // guards what follows
	structural map[string]*structuralschema.Structural
	validators map[string]*validators
	idle       *time.Timer
}

// validators are what a version's objects must pass.
type validators struct {
	schema, status validation.SchemaValidator
	rules          *cel.Validator
}

func newModel(crd *apiextensionsv1.CustomResourceDefinition, c Converter, log *slog.Logger) *model {
	m := &model{
		crd: crd, group: crd.Spec.Group, kind: crd.Status.AcceptedNames.Kind, converter: c, logger: log,
		structural: map[string]*structuralschema.Structural{},
	}
	for _, v := range crd.Spec.Versions {
		if v.Storage {
			m.storage = v.Name
		}
	}
	return m
}

func (m *model) version(name string) *apiextensionsv1.CustomResourceDefinitionVersion {
	for i := range m.crd.Spec.Versions {
		if v := &m.crd.Spec.Versions[i]; v.Name == name {
			return v
		}
	}
	return nil
}

// internalSchema is the version's schema in the form that upstream's libraries
// take; nil if it has none.
func (m *model) internalSchema(version string) (*api.JSONSchemaProps, error) {
	v := m.version(version)
	if v == nil || v.Schema == nil {
		return nil, nil
	}
	out := &api.CustomResourceValidation{}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.Schema, out, nil); err != nil {
		return nil, fmt.Errorf("reading the schema of %s %s: %w", m.crd.Name, version, err)
	}
	return out.OpenAPIV3Schema, nil
}

// schemaOf is the version's structural schema; nil if it has none. It must not
// be changed.
func (m *model) schemaOf(version string) *structuralschema.Structural {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.structural[version]; ok {
		return s
	}
	s, err := m.compile(version)
	if err != nil {
		// Only definitions of before structural schemas were demanded: upstream
		// does not prune them either.
		m.logger.Warn("a definition's schema is not structural", "crd", m.crd.Name, "version", version, "err", err)
	}
	m.structural[version] = s
	return s
}

func (m *model) compile(version string) (*structuralschema.Structural, error) {
	internal, err := m.internalSchema(version)
	if err != nil || internal == nil {
		return nil, err
	}
	s, err := structuralschema.NewStructural(internal)
	if err != nil {
		return nil, err
	}
	s = s.DeepCopy() // defaults are shared with the definition otherwise
	if !m.crd.Spec.PreserveUnknownFields {
		err = defaulting.PruneDefaults(s)
	}
	return s, err
}

// validatorsOf compiles what the version's objects must pass.
func (m *model) validatorsOf(version string) (*validators, error) {
	structural := m.schemaOf(version)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.idle == nil {
		m.idle = time.AfterFunc(validatorsIdle, m.forgetValidators)
	} else {
		m.idle.Reset(validatorsIdle)
	}
	if v := m.validators[version]; v != nil {
		return v, nil
	}
	internal, err := m.internalSchema(version)
	if err != nil {
		return nil, err
	}
	v := &validators{rules: cel.NewValidator(structural, true, celconfig.PerCallLimit)}
	if v.schema, _, err = validation.NewSchemaValidator(internal); err != nil {
		return nil, err
	}
	if internal != nil {
		if status, ok := internal.Properties["status"]; ok {
			if v.status, _, err = validation.NewSchemaValidator(&status); err != nil {
				return nil, err
			}
		}
	}
	if m.validators == nil {
		m.validators = map[string]*validators{}
	}
	m.validators[version] = v
	return v, nil
}

func (m *model) forgetValidators() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.validators = nil
}

// forget stops the timer of a model that is out of use.
func (m *model) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.idle != nil {
		m.idle.Stop()
	}
}

// Encode implements registry.Custom.
func (m *model) Encode(obj runtime.Object) ([]byte, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("encoding %s: %T is not a custom resource", m.kind, obj)
	}
	return u.MarshalJSON()
}

// Decode implements registry.Custom: it reads a stored object, drops what a
// version of before could store and none could now, and sets defaults.
func (m *model) Decode(data []byte) (runtime.Object, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", m.kind, err)
	}
	if _, err := m.coerce(u, coercion{dropInvalid: true, repair: true}); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", m.kind, err)
	}
	m.Default(u)
	return u, nil
}

// Default implements registry.Custom.
func (m *model) Default(obj runtime.Object) {
	if u, ok := obj.(*unstructured.Unstructured); ok && u.GroupVersionKind().GroupKind() == (schema.GroupKind{Group: m.group, Kind: m.kind}) {
		if s := m.schemaOf(u.GroupVersionKind().Version); s != nil {
			defaulting.Default(u.Object, s)
		}
	}
}

// coercion says how an object is brought into the form of its schema.
type coercion struct {
	dropInvalid bool // metadata that cannot be read, instead of refusing it
	repair      bool // a generation that was never set
	unknown     bool // collect the paths of what is dropped
}

// coerce prunes what the schema of u's version does not know, and checks its
// metadata, as unmarshalling into a Go type would.
func (m *model) coerce(u *unstructured.Unstructured, how coercion) (unknown []string, err error) {
	kind, apiVersion := u.GetKind(), u.GetAPIVersion()
	om, found, paths, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{
		DropMalformedFields: how.dropInvalid, ReturnUnknownFieldPaths: how.unknown,
	})
	if err != nil {
		return nil, err
	}
	unknown = append(unknown, paths...)
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, err
	}
	if gv.Group == m.group && kind == m.kind {
		s := m.schemaOf(gv.Version)
		if !m.crd.Spec.PreserveUnknownFields {
			unknown = append(unknown, pruning.PruneWithOptions(u.Object, s, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: how.unknown})...)
			defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, s)
		}
		fieldErr, paths := objectmeta.CoerceWithOptions(nil, u.Object, s, false, objectmeta.CoerceOptions{DropInvalidFields: how.dropInvalid, ReturnUnknownFieldPaths: how.unknown})
		if fieldErr != nil {
			return nil, fieldErr
		}
		unknown = append(unknown, paths...)
		if how.repair && om != nil && om.Generation == 0 {
			om.Generation = 1
		}
	}
	u.SetKind(kind)
	u.SetAPIVersion(apiVersion)
	if found {
		return unknown, objectmeta.SetObjectMeta(u.Object, om)
	}
	return unknown, nil
}

// Read implements registry.Custom.
func (m *model) Read(data []byte, yaml, strict bool, gv schema.GroupVersion) (runtime.Object, error) {
	gvk := gv.WithKind(m.kind)
	s := jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, creator{}, typer{}, jsonserializer.SerializerOptions{Yaml: yaml, Strict: strict})
	obj, _, err := s.Decode(data, &gvk, nil)
	var found []error
	if err != nil {
		bad, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil {
			return nil, err
		}
		found = bad.Errors()
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("%T is not a custom resource", obj)
	}
	unknown, err := m.coerce(u, coercion{unknown: strict})
	if err != nil {
		return nil, err
	}
	for _, path := range unknown {
		found = append(found, fmt.Errorf(`unknown field "%s"`, path))
	}
	m.Default(u)
	if strict && len(found) > 0 {
		return u, runtime.NewStrictDecodingError(found)
	}
	return u, nil
}

// creator and typer are what a serializer needs for objects without types.
type creator struct{}

func (creator) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	return u, nil
}

type typer struct{}

func (typer) ObjectKinds(obj runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	if gvk.Kind == "" {
		return nil, false, runtime.NewMissingKindErr("unstructured object has no kind")
	}
	if gvk.Version == "" {
		return nil, false, runtime.NewMissingVersionErr("unstructured object has no version")
	}
	return []schema.GroupVersionKind{gvk}, false, nil
}

func (typer) Recognizes(schema.GroupVersionKind) bool { return true }

// Convert implements registry.Custom.
func (m *model) Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	out, err := m.ConvertAll([]runtime.Object{obj}, gv)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// ConvertAll is Convert of many, which asks a webhook once.
func (m *model) ConvertAll(objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error) {
	if gv.Group != m.group || m.version(gv.Version) == nil {
		return nil, fmt.Errorf("request to convert CR to an invalid group/version: %s", gv)
	}
	out := make([]runtime.Object, len(objs))
	var ask []runtime.Object
	var at []int
	for i, obj := range objs {
		u, ok := obj.(*unstructured.Unstructured)
		switch {
		case !ok:
			return nil, fmt.Errorf("converting %T: it is not a custom resource", obj)
		case u.GroupVersionKind().GroupVersion() == gv:
			out[i] = obj
		case m.crd.Spec.Conversion != nil && m.crd.Spec.Conversion.Strategy == apiextensionsv1.WebhookConverter:
			ask, at = append(ask, obj), append(at, i)
		default:
			c := u.DeepCopy()
			c.SetAPIVersion(gv.String())
			out[i] = c
			if err := m.converted(c); err != nil {
				return nil, err
			}
		}
	}
	if len(ask) == 0 {
		return out, nil
	}
	if m.converter == nil {
		return nil, errors.New("conversion webhooks are not served")
	}
	answers, err := m.converter.Convert(m.crd, ask, gv)
	if err != nil {
		return nil, err
	}
	for i, answer := range answers {
		u, ok := answer.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("conversion webhook for %s returned %T", m.kind, answer)
		}
		if err := m.converted(u); err != nil {
			return nil, err
		}
		out[at[i]] = u
	}
	return out, nil
}

// converted brings an object into the form of its new version's schema.
func (m *model) converted(u *unstructured.Unstructured) error {
	if _, err := m.coerce(u, coercion{}); err != nil {
		return err
	}
	m.Default(u)
	return nil
}

// FieldLabel implements registry.Custom.
func (m *model) FieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	if label == "metadata.name" || label == "metadata.namespace" && m.crd.Spec.Scope == apiextensionsv1.NamespaceScoped {
		return label, value, nil
	}
	if v := m.version(gvk.Version); v != nil {
		for _, f := range v.SelectableFields {
			if strings.TrimPrefix(f.JSONPath, ".") == label {
				return label, value, nil
			}
		}
	}
	return "", "", fmt.Errorf("field label not supported: %s", label)
}

// Fields implements registry.Custom.
func (m *model) Fields(obj runtime.Object, gvk schema.GroupVersionKind) fields.Set {
	v := m.version(gvk.Version)
	if v == nil || len(v.SelectableFields) == 0 {
		return nil
	}
	converted, err := m.Convert(obj, gvk.GroupVersion())
	if err != nil {
		m.logger.Warn("an object cannot be selected by its fields", "crd", m.crd.Name, "err", err)
		return nil
	}
	set := fields.Set{}
	for _, f := range v.SelectableFields {
		set[strings.TrimPrefix(f.JSONPath, ".")] = fieldValue(converted.(*unstructured.Unstructured), f.JSONPath)
	}
	return set
}

// fieldValue is what a path leads to, "" if to nothing.
func fieldValue(u *unstructured.Unstructured, path string) string {
	p := jsonpath.New("selectableField").AllowMissingKeys(true)
	if p.Parse("{"+path+"}") != nil {
		return ""
	}
	found, err := p.FindResults(u.Object)
	if err != nil || len(found) != 1 || len(found[0]) != 1 {
		return ""
	}
	if v := found[0][0].Interface(); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}
