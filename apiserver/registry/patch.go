package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/warning"
	strictjson "sigs.k8s.io/json"

	"edged/apiserver/codec"
)

// maxJSONPatchOperations is upstream's: a patch of many copies makes an object
// that is exponentially large.
const maxJSONPatchOperations = 10000

// PatchOptions are the options of a patch.
type PatchOptions struct {
	FieldManager    string
	Force           bool // of an apply: take fields from their owners
	DryRun          []string
	FieldValidation string // metav1.FieldValidation…; empty is Warn
}

// Patch changes an object by a patch against the version that the request
// names (its RequestInfo; else the storage version). An apply creates what
// does not exist.
func (r *Registry) Patch(ctx context.Context, gr schema.GroupResource, ns, name, sub string, patchType types.PatchType, patch []byte, opts PatchOptions) (obj runtime.Object, created bool, err error) {
	c, err := r.begin(ctx, "patch", gr, ns, name, sub)
	if err != nil {
		return nil, false, err
	}
	asked := opts.FieldValidation // webhooks are told what was asked for
	if opts.FieldValidation == "" {
		opts.FieldValidation = metav1.FieldValidationWarn
	}
	update := updateOptions{verb: "patch", UpdateOptions: UpdateOptions{
		DryRun: opts.DryRun, FieldManager: opts.FieldManager, FieldValidation: asked,
	}}
	p := &patcher{c: c, gvk: c.gvk(), patch: patch, validation: opts.FieldValidation}
	var mutate func(runtime.Object) (runtime.Object, error)
	switch patchType {
	case types.JSONPatchType, types.MergePatchType:
		mutate = p.existing(name, func(cur runtime.Object) (runtime.Object, error) { return p.json(patchType, cur) })
	case types.StrategicMergePatchType:
		if c.kind.Custom != nil && sub != "scale" {
			return nil, false, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", gr, name, "the resource has no types that a strategic merge patch could go by", 0, false)
		}
		mutate = p.existing(name, p.strategic)
	case types.ApplyYAMLPatchType:
		if opts.FieldManager == "" {
			return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "",
				field.ErrorList{field.Required(field.NewPath("fieldManager"), "is required for apply patch")})
		}
		if c.projected() {
			if err := p.applyThrough(c.kind.Subresources[sub].Projection, name); err != nil {
				return nil, false, err
			}
			update.through = true
		}
		update.allowCreate, update.tracked = sub == "", true
		mutate = func(cur runtime.Object) (runtime.Object, error) { return r.apply(p, cur, opts) }
	default:
		return nil, false, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", gr, name, fmt.Sprintf("%s: unimplemented patch type", patchType), 0, false)
	}
	checked := func(cur runtime.Object) (runtime.Object, error) {
		was, err := meta.Accessor(cur)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		uid := was.GetUID()
		out, err := mutate(cur)
		if err != nil {
			return nil, err
		}
		return out, checkIdentity(out, ns, name, uid, c)
	}
	return r.update(ctx, gr, ns, name, sub, checked, update)
}

// gvk is the version of the object that the request works on.
func (c *call) gvk() schema.GroupVersionKind {
	if c.sub != "" {
		if s := c.kind.Subresources[c.sub]; s != nil && s.New != nil {
			return s.GVK
		}
	}
	return schema.GroupVersionKind{Group: c.gr.Group, Version: c.version(), Kind: c.kind.GVK.Kind}
}

func (c *call) projected() bool {
	s := c.kind.Subresources[c.sub]
	return s != nil && s.Projection != nil
}

// checkIdentity refuses a patch that makes another object of it: a name is compared
// with the path's, a uid is an immutable field, not a condition as in an update.
func checkIdentity(obj runtime.Object, ns, name string, uid types.UID, c *call) error {
	if err := checkName(obj, ns, name, c); err != nil {
		return err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if now := m.GetUID(); now != "" && uid != "" && now != uid {
		errs := field.ErrorList{field.Invalid(field.NewPath("metadata", "uid"), now, apivalidation.FieldImmutableErrorMsg)}
		return apierrors.NewInvalid(c.kind.GVK.GroupKind(), name, errs)
	}
	return nil
}

// checkName refuses a patch that renames or moves the object.
func checkName(obj runtime.Object, ns, name string, c *call) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if m.GetName() == "" {
		m.SetName(name)
	}
	if m.GetName() != name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", m.GetName(), name))
	}
	if c.kind.Namespaced && m.GetNamespace() != "" && m.GetNamespace() != ns {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// patcher applies one patch; it runs again for every lost race.
type patcher struct {
	c          *call
	gvk        schema.GroupVersionKind
	patch      []byte
	validation string
	warned     bool
}

// existing lets fn see the object in the patch's version; there must be one.
func (p *patcher) existing(name string, fn func(runtime.Object) (runtime.Object, error)) func(runtime.Object) (runtime.Object, error) {
	return func(cur runtime.Object) (runtime.Object, error) {
		m, err := meta.Accessor(cur)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		if m.GetUID() == "" {
			return nil, apierrors.NewNotFound(p.c.gr, name)
		}
		versioned, err := p.c.kind.ToVersion(cur, p.gvk)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return fn(versioned)
	}
}

func (p *patcher) strict() bool {
	return p.validation == metav1.FieldValidationStrict || p.validation == metav1.FieldValidationWarn
}

// judge refuses or warns of what a strict reading found; shown is what the
// error quotes.
func (p *patcher) judge(found []error, shown string) error {
	switch {
	case len(found) == 0:
		return nil
	case p.validation == metav1.FieldValidationWarn:
		if !p.warned {
			p.warned = true
			for _, e := range found {
				warning.AddWarning(p.c.ctx, "", e.Error())
			}
		}
		return nil
	}
	return invalidPatch(shown, runtime.NewStrictDecodingError(found))
}

func invalidPatch(shown string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), shown, err.Error())})
}

// json applies a JSON patch (RFC 6902) or a merge patch (RFC 7386).
func (p *patcher) json(patchType types.PatchType, cur runtime.Object) (runtime.Object, error) {
	before, err := json.Marshal(cur)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var after []byte
	var found []error
	if patchType == types.JSONPatchType {
		after, found, err = p.jsonPatch(before)
	} else {
		after, found, err = p.mergePatch(before)
	}
	if err != nil {
		return nil, err
	}
	if p.c.kind.isCustom(cur) {
		obj, err := p.c.kind.Custom.Read(after, false, p.strict(), p.gvk.GroupVersion())
		if strict, ok := runtime.AsStrictDecodingError(err); ok {
			found = append(found, strict.Errors()...)
		} else if err != nil {
			return nil, invalidPatch(string(after), err)
		}
		return obj, p.judge(found, string(after))
	}
	obj, err := p.typeOf(after)
	if err != nil {
		return nil, invalidPatch(string(after), err)
	}
	if p.strict() {
		more, err := strictjson.UnmarshalStrict(after, obj)
		if err != nil {
			return nil, invalidPatch(string(after), err)
		}
		found = append(found, more...)
	} else if err := strictjson.UnmarshalCaseSensitivePreserveInts(after, obj); err != nil {
		return nil, invalidPatch(string(after), err)
	}
	return obj, p.judge(found, string(after))
}

// typeOf makes an object of the kind that a patched one says it is: it may not have
// become another.
func (p *patcher) typeOf(after []byte) (runtime.Object, error) {
	var now runtime.TypeMeta
	if err := json.Unmarshal(after, &now); err != nil {
		return nil, err
	}
	gvk := schema.FromAPIVersionAndKind(now.APIVersion, now.Kind)
	if gvk.Empty() {
		gvk = p.gvk
	}
	obj, err := codec.Scheme().New(gvk)
	if err == nil && gvk != p.gvk {
		err = fmt.Errorf("converting (%v) to (%v): unknown conversion", gvk, p.gvk)
	}
	return obj, err
}

// jsonPatchOperation is what a strict reading of a JSON patch allows.
type jsonPatchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

func (p *patcher) jsonPatch(before []byte) (after []byte, found []error, err error) {
	if p.strict() {
		var ops []jsonPatchOperation
		if found, err = strictjson.UnmarshalStrict(p.patch, &ops); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for i, e := range found {
			found[i] = fmt.Errorf("json patch %v", e)
		}
	}
	ops, err := jsonpatch.DecodePatch(p.patch)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > maxJSONPatchOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxJSONPatchOperations, len(ops)))
	}
	if after, err = ops.Apply(before); err != nil {
		return nil, nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return after, found, nil
}

func (p *patcher) mergePatch(before []byte) (after []byte, found []error, err error) {
	if p.strict() {
		v := map[string]any{}
		if found, err = strictjson.UnmarshalStrict(p.patch, &v); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	after, err = jsonpatch.MergePatch(before, p.patch)
	if errors.Is(err, jsonpatch.ErrBadJSONPatch) {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return after, found, err
}

// strategic applies a patch whose lists merge as the Go types' tags say.
func (p *patcher) strategic(cur runtime.Object) (runtime.Object, error) {
	before, err := runtime.DefaultUnstructuredConverter.ToUnstructured(cur)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	patch := map[string]any{}
	var found []error
	if p.strict() {
		found, err = strictjson.UnmarshalStrict(p.patch, &patch)
	} else {
		err = strictjson.UnmarshalCaseSensitivePreserveInts(p.patch, &patch)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	obj, err := codec.Scheme().New(p.gvk)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	after, err := strategicpatch.StrategicMergeMapPatch(before, patch, obj)
	if err != nil {
		return nil, strategicError(err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(after, obj, p.strict()); err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok {
			return nil, invalidPatch(fmt.Sprintf("%+v", patch), err)
		}
		found = append(found, strict.Errors()...)
	}
	return obj, p.judge(found, fmt.Sprintf("%+v", patch))
}

func strategicError(err error) error {
	switch {
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
		return apierrors.NewBadRequest(err.Error())
	case errors.Is(err, mergepatch.ErrNoListOfLists), errors.Is(err, mergepatch.ErrPatchContentNotMatchRetainKeys):
		return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return err
}
