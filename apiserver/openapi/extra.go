package openapi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Extra is what the API serves beyond the kinds that the documents know: it
// changes while the device runs.
type Extra interface {
	// GroupVersions are the hashes of the further documents of version 3, by
	// path ("apis/example.com/v1").
	GroupVersions(ctx context.Context) map[string]string
	// Document is one of these documents; nil if there is none.
	Document(ctx context.Context, path string) ([]byte, error)
	// Legacy is what the document of version 2 has beyond.
	Legacy(ctx context.Context) (definitions map[string]*spec.Schema, paths map[string]any, err error)
}

// extraHash is of all that is beyond; "" if nothing is.
func extraHash(more map[string]string) string {
	if len(more) == 0 {
		return ""
	}
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(more)) {
		b.WriteString(path + more[path])
	}
	return fmt.Sprintf("%X", sha512.Sum512([]byte(b.String())))
}

// serveExtra answers for a document that is not embedded.
func (h *Handler) serveExtra(w http.ResponseWriter, req *http.Request, path, hash string) {
	if negotiate(w, req, typeJSON) == "" || redirected(w, req, hash) {
		return
	}
	var doc []byte
	var err error
	for _, e := range h.extras {
		if doc, err = e.Document(req.Context(), path); doc != nil || err != nil {
			break
		}
	}
	if doc == nil && err == nil {
		err = fmt.Errorf("%s is not served any more", path)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	if notModified(w, req, hash) {
		return
	}
	send(w, req, func(to io.Writer) error {
		_, err := to.Write(doc)
		return err
	})
}

// serveV2With answers with the embedded document of version 2 and what is
// beyond it.
func (h *Handler) serveV2With(w http.ResponseWriter, req *http.Request, mediaType, name, hash string) {
	if notModified(w, req, hash) {
		return
	}
	definitions, paths, more, err := h.legacy(req.Context(), mediaType == typeV2Proto)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	f, err := specs.Open("spec/" + name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, req, func(to io.Writer) error {
		if mediaType != typeV2Proto {
			return splice(to, z, map[string]any{"definitions": definitions, "paths": paths})
		}
		// Messages one after the other are one message: lists are joined.
		if _, err := io.Copy(to, z); err != nil {
			return err
		}
		_, err := to.Write(more)
		return err
	})
}

// legacy is what is beyond the embedded document of version 2, as JSON's members or
// as a message.
func (h *Handler) legacy(ctx context.Context, asProto bool) (definitions map[string]*spec.Schema, paths map[string]any, message []byte, err error) {
	definitions, paths = map[string]*spec.Schema{}, map[string]any{}
	for _, e := range h.extras {
		defs, of, err := e.Legacy(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		if !asProto {
			maps.Copy(definitions, defs)
			maps.Copy(paths, of)
		} else if len(defs) > 0 || len(of) > 0 {
			more, err := legacyProto(defs, of)
			if err != nil {
				return nil, nil, nil, err
			}
			message = append(message, more...)
		}
	}
	return definitions, paths, message, nil
}

func legacyProto(definitions map[string]*spec.Schema, paths map[string]any) ([]byte, error) {
	doc, err := json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]any{"title": "Kubernetes CRD Swagger", "version": "v0.1.0"}, "definitions": definitions, "paths": paths,
	})
	if err != nil {
		return nil, err
	}
	parsed, err := openapi_v2.ParseDocument(doc)
	if err != nil {
		return nil, fmt.Errorf("reading the OpenAPI of custom resources: %w", err)
	}
	return proto.Marshal(&openapi_v2.Document{Definitions: parsed.Definitions, Paths: parsed.Paths})
}

// Defined are the names of the definitions in the embedded document of version 2,
// read anew each time.
func Defined() (map[string]bool, error) {
	f, err := specs.Open("spec/v2.json.gz")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Definitions map[string]skipped `json:"definitions"`
	}
	if err := json.NewDecoder(z).Decode(&doc); err != nil {
		return nil, fmt.Errorf("reading the embedded OpenAPI document: %w", err)
	}
	names := make(map[string]bool, len(doc.Definitions))
	for name := range doc.Definitions {
		names[name] = true
	}
	return names, nil
}

// skipped is a JSON value that nobody wants.
type skipped struct{}

func (*skipped) UnmarshalJSON([]byte) error { return nil }

// splice copies a JSON object and adds members to those of its members that
// more names, which must be objects.
func splice(to io.Writer, from io.Reader, more map[string]any) error {
	in, out := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(to, 64<<10)
	depth, inString, escaped := 0, false, false
	var word []byte // the string read last, while at depth 1
	var insert []byte
	for {
		c, err := in.ReadByte()
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return err
		}
		if err := out.WriteByte(c); err != nil {
			return err
		}
		switch {
		case inString:
			switch {
			case escaped:
				escaped = false
			case c == '\\':
				escaped = true
			case c == '"':
				inString = false
			case depth == 1:
				word = append(word, c)
			}
		case c == '"':
			inString, word = true, word[:0]
		case c == '{' || c == '[':
			depth++
			if depth == 2 && c == '{' {
				if insert, err = members(more[string(word)]); err != nil {
					return err
				}
				if len(insert) > 0 {
					next, err := in.Peek(1)
					if err != nil {
						return err
					}
					if next[0] != '}' {
						insert = append(insert, ',')
					}
					if _, err := out.Write(insert); err != nil {
						return err
					}
				}
			}
		case c == '}' || c == ']':
			depth--
		}
	}
}

// members is an object's JSON without its braces.
func members(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	data, err := json.Marshal(v)
	if err != nil || len(data) < 2 {
		return nil, err
	}
	return bytes.Clone(data[1 : len(data)-1]), nil
}

// send writes a body, compressed if the client takes it.
func send(w http.ResponseWriter, req *http.Request, write func(io.Writer) error) {
	w.Header().Add("Vary", "Accept-Encoding")
	if !strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		_ = write(w) // an error is the client's going away
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil || write(z) != nil {
		return // the client has gone away
	}
	z.Close()
}
