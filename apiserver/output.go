package apiserver

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"edged/apiserver/codec"
)

// format is how a response is encoded.
type format int

const (
	formatJSON format = iota
	formatYAML
	formatProtobuf
)

// output is what the client wants back: a format and, possibly, another kind
// than the resource's own.
type output struct {
	format    format
	mediaType string
	pretty    bool
	// convert is Table, PartialObjectMetadata or PartialObjectMetadataList in
	// meta.k8s.io v1 or v1beta1; zero is none.
	convert schema.GroupVersionKind
	// include is the includeObject option of a Table.
	include metav1.IncludeObjectPolicy
}

func (o output) table() bool    { return o.convert.Kind == "Table" }
func (o output) metadata() bool { return strings.HasPrefix(o.convert.Kind, "PartialObjectMetadata") }

// endpoint says which transforms a path offers.
type endpoint struct{ transforms []string }

// Transforms by verb: a list has no single metadata and vice versa.
var (
	objectEndpoint = endpoint{[]string{"Table", "PartialObjectMetadata"}}
	listEndpoint   = endpoint{[]string{"Table", "PartialObjectMetadataList"}}
	watchEndpoint  = endpoint{[]string{"Table", "PartialObjectMetadata"}}
	plainEndpoint  = endpoint{}
)

func (e endpoint) AllowsMediaTypeTransform(mimeType, mimeSubType string, target *schema.GroupVersionKind) bool {
	if target == nil {
		return true
	}
	if target.Kind == "Table" && (mimeType != "application" || mimeSubType != "json" && mimeSubType != "yaml") {
		return false // cells are of any type, which protobuf cannot carry
	}
	return (target.GroupVersion() == metav1.SchemeGroupVersion || target.GroupVersion() == metav1beta1.SchemeGroupVersion) &&
		slices.Contains(e.transforms, target.Kind)
}
func (endpoint) AllowsServerVersion(string) bool  { return false }
func (endpoint) AllowsStreamSchema(s string) bool { return s == "watch" }

// negotiate is the function for what a resource can be encoded as.
func (c *call) negotiate(e endpoint) (output, error) {
	if c.res.kind != nil && c.res.kind.Custom != nil && c.info.Subresource != "scale" {
		return negotiateFrom(c.req, withoutProtobuf{codec.Codecs()}, e)
	}
	return negotiate(c.req, e)
}

// withoutProtobuf is for objects that have no types.
type withoutProtobuf struct{ runtime.NegotiatedSerializer }

func (w withoutProtobuf) SupportedMediaTypes() []runtime.SerializerInfo {
	return slices.DeleteFunc(slices.Clone(w.NegotiatedSerializer.SupportedMediaTypes()), func(i runtime.SerializerInfo) bool {
		return i.MediaType == runtime.ContentTypeProtobuf
	})
}

// negotiate reads the Accept header, with upstream's 406.
func negotiate(req *http.Request, e endpoint) (output, error) {
	return negotiateFrom(req, codec.Codecs(), e)
}

func negotiateFrom(req *http.Request, from runtime.NegotiatedSerializer, e endpoint) (output, error) {
	opts, info, err := negotiation.NegotiateOutputMediaType(req, from, e)
	if err != nil {
		return output{}, err
	}
	out := output{format: formatOf(info.MediaType), mediaType: info.MediaType, pretty: wantsPretty(req, opts)}
	if opts.Convert != nil {
		out.convert = *opts.Convert
	}
	if out.table() {
		if out.include, err = includeObject(req); err != nil {
			return output{}, err
		}
	}
	return out, nil
}

func formatOf(mediaType string) format {
	switch mediaType {
	case runtime.ContentTypeYAML:
		return formatYAML
	case runtime.ContentTypeProtobuf:
		return formatProtobuf
	}
	return formatJSON
}

// wantsPretty: only who asks gets indented JSON. Upstream also guesses from the
// User-Agent.
func wantsPretty(req *http.Request, opts negotiation.MediaTypeOptions) bool {
	if opts.Pretty {
		return true
	}
	if !strings.Contains(req.URL.RawQuery, "pretty") {
		return false
	}
	v, _ := strconv.ParseBool(req.URL.Query().Get("pretty"))
	return v
}
