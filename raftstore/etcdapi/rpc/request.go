package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// request is what the headers of a request say, but for its path and its timeout:
// clients say the same with each.
type request struct {
	fields []hpack.HeaderField
	ctx    context.Context // with the metadata
	kind   string          // the content type
	// refusal and reset are why it is not served.
	refusal *refusal
	reset   http2.ErrCode
}

// refusal is what a request is answered that reaches no handler.
type refusal struct {
	http   int
	kind   string
	status *status.Status
}

const grpcType = "application/grpc"

// recognize returns the path and the timeout of the request at hand, and makes
// c.same what the rest of it means.
func (c *conn) recognize() (path, timeout string) {
	same, n := true, 0
	for _, f := range c.fields {
		switch f.Name {
		case ":path":
			path = f.Value
			continue
		case "grpc-timeout":
			timeout = f.Value
			continue
		}
		same = same && n < len(c.same.fields) && c.same.fields[n] == f
		n++
	}
	if !same || n != len(c.same.fields) || n == 0 {
		c.same = c.understand()
	}
	return path, timeout
}

// understand reads the fields of a request.
func (c *conn) understand() request {
	r := request{kind: grpcType}
	md := metadata.MD{}
	httpMethod, isGRPC, contentType := "", false, ""
	refuse := func(code int, s *status.Status) {
		if r.refusal == nil {
			r.refusal = &refusal{http: code, status: s}
		}
	}
	for _, f := range c.fields {
		if f.Name == ":path" || f.Name == "grpc-timeout" {
			continue
		}
		r.fields = append(r.fields, f)
		if !validName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
			r.reset = http2.ErrCodeProtocol
		}
		switch f.Name {
		case ":method":
			httpMethod = f.Value
		case "content-type":
			if contentType = f.Value; isType(f.Value) {
				isGRPC, r.kind = true, f.Value
				md.Append(f.Name, f.Value)
			}
		case "grpc-encoding":
			if f.Value != "" && f.Value != "identity" {
				refuse(http.StatusOK, status.Newf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", f.Value))
			}
		case "connection":
			r.reset = http2.ErrCodeProtocol // gRPC's A41
		case "te", "grpc-message-type", "grpc-message", "grpc-status", ":scheme":
		default:
			v, err := metadataValue(f.Name, f.Value)
			if err != nil {
				refuse(http.StatusBadRequest, status.Newf(codes.Internal, "malformed binary metadata %q in header %q: %v", f.Value, f.Name, err))
			}
			md.Append(f.Name, v)
		}
	}
	// What is wrong with a request is told in grpc's own order.
	later := r.refusal
	r.refusal = nil
	authority, host := md[":authority"], md["host"]
	switch {
	case len(authority) > 1 || len(host) > 1:
		refuse(http.StatusBadRequest, status.New(codes.Internal, fmt.Sprintf("num values of :authority: %v, num values of host: %v, both must only have 1 value as per HTTP/2 spec", len(authority), len(host))))
	case !isGRPC:
		refuse(http.StatusUnsupportedMediaType, status.Newf(codes.InvalidArgument, "invalid gRPC request content-type %q", contentType))
	case len(authority) == 0 && len(host) == 0:
		refuse(http.StatusBadRequest, status.New(codes.Internal, "no host or :authority header present"))
	case httpMethod != http.MethodPost:
		refuse(http.StatusMethodNotAllowed, status.Newf(codes.Internal, "Received a HEADERS frame with :method %q which should be POST", httpMethod))
	default:
		r.refusal = later
	}
	if r.refusal != nil {
		r.refusal.kind = r.kind
	}
	if len(authority) == 0 {
		md[":authority"] = host
	}
	delete(md, "host")
	r.ctx = metadata.NewIncomingContext(c.ctx, md)
	return r
}

// isType reports whether a content type is gRPC's, with messages of protobuf.
func isType(s string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(s), grpcType)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

func validName(s string) bool {
	name := strings.TrimPrefix(s, ":")
	return httpguts.ValidHeaderFieldName(name) && strings.ToLower(name) == name
}

// metadataValue decodes a value of a name that ends in "-bin".
func metadataValue(name, v string) (string, error) {
	if !strings.HasSuffix(name, "-bin") {
		return v, nil
	}
	data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
	return string(data), err
}

// reserved are names that handlers cannot set.
var reserved = []string{"content-type", "grpc-encoding", "grpc-message", "grpc-message-type", "grpc-status", "grpc-status-details-bin", "grpc-timeout", "te", "user-agent"}

// fieldsOf are the fields that md becomes.
func fieldsOf(md metadata.MD) (fields []hpack.HeaderField) {
	for name, values := range md {
		if strings.HasPrefix(name, ":") || slices.Contains(reserved, name) {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			fields = append(fields, hpack.HeaderField{Name: name, Value: v})
		}
	}
	return fields
}
