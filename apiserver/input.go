package apiserver

import (
	"encoding/hex"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"edged/apiserver/codec"
)

// readBody reads a request's body up to the limit.
func (s *Server) readBody(req *http.Request) ([]byte, error) {
	defer req.Body.Close()
	body, err := io.ReadAll(io.LimitReader(req.Body, s.limits.BodyBytes+1))
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("reading the request body: %v", err))
	}
	if int64(len(body)) > s.limits.BodyBytes {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", s.limits.BodyBytes))
	}
	return body, nil
}

// decodeBody reads the object of a create or update: of kind gvk, or anything
// that says it is of that kind. Unknown and duplicate fields are errors,
// warnings or nothing, as fieldValidation says. The object is defaulted.
func (s *Server) decodeBody(req *http.Request, gvk schema.GroupVersionKind, fieldValidation string) (runtime.Object, error) {
	body, err := s.readBody(req)
	if err != nil {
		return nil, err
	}
	info, err := negotiation.NegotiateInputSerializer(req, false, codec.Codecs())
	if err != nil {
		return nil, err
	}
	decoder := info.Serializer
	if fieldValidation != metav1.FieldValidationIgnore && info.StrictSerializer != nil {
		decoder = info.StrictSerializer
	}
	obj, got, err := codec.Codecs().DecoderToVersion(decoder, gvk.GroupVersion()).Decode(body, &gvk, nil)
	if err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil || fieldValidation == metav1.FieldValidationStrict {
			return nil, decodeError(err, gvk, got, body)
		}
		for _, e := range strict.Errors() {
			warning.AddWarning(req.Context(), "", e.Error())
		}
	}
	if got.GroupVersion() != gvk.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)",
			got.GroupVersion(), gvk.GroupVersion()))
	}
	if got.Kind != gvk.Kind {
		return nil, decodeError(fmt.Errorf("converting (%s) to (%s): unknown conversion", got, gvk), gvk, got, body)
	}
	return obj, nil
}

// decode reads the object of a create or update of this call's resource.
func (c *call) decode(fieldValidation string) (runtime.Object, error) {
	if c.res.kind.Custom == nil || c.gvk() != c.res.gvk {
		return c.decodeBody(c.req, c.gvk(), fieldValidation)
	}
	gvk := c.res.gvk
	body, err := c.readBody(c.req)
	if err != nil {
		return nil, err
	}
	info, err := negotiation.NegotiateInputSerializer(c.req, false, withoutProtobuf{codec.Codecs()})
	if err != nil {
		return nil, err
	}
	obj, err := c.res.kind.Custom.Read(body, info.MediaType == runtime.ContentTypeYAML, fieldValidation != metav1.FieldValidationIgnore, gvk.GroupVersion())
	var got *schema.GroupVersionKind
	if obj != nil {
		kind := obj.GetObjectKind().GroupVersionKind()
		got = &kind
	}
	if err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil || fieldValidation == metav1.FieldValidationStrict {
			return nil, decodeError(err, gvk, got, body)
		}
		for _, e := range strict.Errors() {
			warning.AddWarning(c.req.Context(), "", e.Error())
		}
	}
	if got.GroupVersion() != gvk.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got.GroupVersion(), gvk.GroupVersion()))
	}
	return obj, nil
}

// decodeError is upstream's transformDecodeError.
func decodeError(err error, want schema.GroupVersionKind, got *schema.GroupVersionKind, body []byte) error {
	if got != nil && got.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", got.Kind, got.Version, want.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, summarize(body)))
}

// summarize shows the beginning of a body: of what is not JSON, its bytes.
func summarize(body []byte) string {
	const shown = 30
	more := ""
	if len(body) > shown {
		body, more = body[:shown], " ..."
	}
	switch {
	case len(body) == 0:
		return "<empty>"
	case body[0] == '{':
		return string(body) + more
	}
	return hex.EncodeToString(body) + more
}

// decodeOptions reads query parameters into one of meta/v1's option types.
func decodeOptions(req *http.Request, into runtime.Object) error {
	query := req.URL.Query()
	if len(query) == 0 {
		return nil
	}
	if err := metainternalscheme.ParameterCodec.DecodeParameters(query, metav1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

func createOptions(req *http.Request) (metav1.CreateOptions, error) {
	opts := metav1.CreateOptions{}
	if err := decodeOptions(req, &opts); err != nil {
		return opts, err
	}
	if errs := validation.ValidateCreateOptions(&opts); len(errs) > 0 {
		return opts, apierrors.NewInvalid(optionsKind("CreateOptions"), "", errs)
	}
	opts.FieldManager = managerOrUserAgent(opts.FieldManager, req)
	return opts, nil
}

func updateOptions(req *http.Request) (metav1.UpdateOptions, error) {
	opts := metav1.UpdateOptions{}
	if err := decodeOptions(req, &opts); err != nil {
		return opts, err
	}
	if errs := validation.ValidateUpdateOptions(&opts); len(errs) > 0 {
		return opts, apierrors.NewInvalid(optionsKind("UpdateOptions"), "", errs)
	}
	opts.FieldManager = managerOrUserAgent(opts.FieldManager, req)
	return opts, nil
}

// managerOrUserAgent names who writes, as upstream does: the field manager, or
// the program's name out of the User-Agent.
func managerOrUserAgent(manager string, req *http.Request) string {
	if manager != "" {
		return manager
	}
	name, _, _ := strings.Cut(req.UserAgent(), "/")
	limit := validation.FieldManagerMaxLength
	if len(name) > limit {
		name = name[:limit]
	}
	return name
}

// deleteOptions come in the body or, if there is none, in the query.
func (s *Server) deleteOptions(req *http.Request) (metav1.DeleteOptions, error) {
	opts := metav1.DeleteOptions{}
	body, err := s.readBody(req)
	if err != nil {
		return opts, err
	}
	if len(body) == 0 {
		if err := decodeOptions(req, &opts); err != nil {
			return opts, err
		}
	} else if err := decodeDeleteOptions(req, body, &opts); err != nil {
		return opts, err
	}
	if errs := validation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return opts, apierrors.NewInvalid(optionsKind("DeleteOptions"), "", errs)
	}
	opts.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("DeleteOptions"))
	return opts, nil
}

func decodeDeleteOptions(req *http.Request, body []byte, opts *metav1.DeleteOptions) error {
	info, err := negotiation.NegotiateInputSerializer(req, false, metainternalscheme.Codecs)
	if err != nil {
		return err
	}
	gvk := metav1.SchemeGroupVersion.WithKind("DeleteOptions")
	obj, _, err := metainternalscheme.Codecs.DecoderToVersion(info.Serializer, gvk.GroupVersion()).Decode(body, &gvk, opts)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if obj != opts {
		return apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
	}
	return nil
}

// listOptions reads the parameters of list, watch and deletecollection. A name
// in the path (of a watch of one object) is a field selector.
func listOptions(req *http.Request, info *request.RequestInfo) (metainternal.ListOptions, error) {
	opts := metainternal.ListOptions{}
	if err := decodeOptions(req, &opts); err != nil {
		return opts, err
	}
	metainternal.SetListOptionsDefaults(&opts, true)
	if info.Name == "" {
		return opts, nil
	}
	byName := fields.OneTermEqualSelector("metadata.name", info.Name)
	if opts.FieldSelector == nil || opts.FieldSelector.Empty() {
		opts.FieldSelector = byName
		return opts, nil
	}
	if name, ok := opts.FieldSelector.RequiresExactMatch("metadata.name"); !ok || name != info.Name {
		return opts, apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
	}
	return opts, nil
}

func optionsKind(kind string) schema.GroupKind {
	return schema.GroupKind{Group: metav1.GroupName, Kind: kind}
}

// setSelectors gives authorizers the selectors of a request, unless they do
// not parse: then the request fails later, with a better message.
func setSelectors(attrs *authorizer.AttributesRecord, fieldSelector, labelSelector string) {
	if fieldSelector != "" {
		if sel, err := fields.ParseSelector(fieldSelector); err != nil {
			attrs.FieldSelectorParsingErr = err
		} else {
			attrs.FieldSelectorRequirements = sel.Requirements()
		}
	}
	if labelSelector != "" {
		if sel, err := labels.Parse(labelSelector); err != nil {
			attrs.LabelSelectorParsingErr = err
		} else {
			attrs.LabelSelectorRequirements, _ = sel.Requirements()
		}
	}
}

// mediaType is the Content-Type without its parameters.
func mediaType(req *http.Request) string {
	typ, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return typ
}
