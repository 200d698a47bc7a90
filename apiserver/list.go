package apiserver

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"edged/apiserver/codec"
	"edged/apiserver/objcache"
	"edged/apiserver/registry"
)

// list is a list on its way to the client: its head, and its items as a source
// that is read one by one, so that never more than one item is held encoded.
type list struct {
	kind  string // e.g. PodList
	gv    schema.GroupVersion
	meta  metav1.ListMeta
	items []runtime.Object // of the version they are stored in, shared
	gvk   schema.GroupVersionKind
	of    *registry.Kind
}

// newList is the answer of a resource. Objects that a webhook converts are
// converted here, with one question.
func newList(res *resource, result *registry.ListResult) (*list, error) {
	gvk := res.gvk
	if c, ok := res.kind.Custom.(interface {
		ConvertAll(objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error)
	}); ok {
		items, err := c.ConvertAll(result.Items, gvk.GroupVersion())
		if err != nil {
			return nil, err
		}
		converted := *result
		converted.Items, result = items, &converted
	}
	return &list{
		kind: res.list, gv: gvk.GroupVersion(), gvk: gvk, of: res.kind, items: result.Items,
		meta: listMeta(strconv.FormatInt(result.Revision, 10), result.Continue, result.Remaining),
	}, nil
}

// item returns the i-th item in the version of the list.
func (l *list) item(i int) (runtime.Object, error) { return versioned(l.of, l.items[i], l.gvk) }

// bare is the i-th item as it appears in a JSON list of its own kind: without
// TypeMeta.
func (l *list) bare(i int) (runtime.Object, error) {
	obj, err := l.item(i)
	if err != nil {
		return nil, err
	}
	return withoutType(obj), nil
}

// withoutType returns a copy of the object's struct without TypeMeta.
func withoutType(obj runtime.Object) runtime.Object {
	obj = objcache.ShallowCopy(obj)
	if f := reflect.ValueOf(obj).Elem().FieldByName("TypeMeta"); f.IsValid() {
		f.SetZero()
	}
	return obj
}

// respondList writes a list in the negotiated form.
func (s *Server) respondList(w http.ResponseWriter, req *http.Request, out output, l *list) {
	encode := l.writeJSON
	switch {
	case out.table():
		columns, err := s.tableColumns(l)
		if err != nil {
			s.respondError(w, req, err)
			return
		}
		encode = func(w io.Writer) error { return s.writeTable(w, out, l, columns) }
	case out.metadata() && out.format == formatProtobuf:
		encode = func(w io.Writer) error { return l.writeMetadataProtobuf(w, out.convert) }
	case out.metadata():
		encode = func(w io.Writer) error { return l.writeMetadata(w, out.convert) }
	case out.format == formatProtobuf:
		encode = l.writeProtobuf
	}
	if out.format == formatYAML || out.pretty {
		s.respondBuffered(w, req, out, encode)
		return
	}
	w.Header().Set("Content-Type", out.mediaType)
	b := newBody(w, req, http.StatusOK)
	if err := encode(b); err != nil {
		if b.to != nil { // the client has half of it: end the connection
			s.logger.Error("encoding a list failed", "path", req.URL.Path, "err", err)
			panic(http.ErrAbortHandler)
		}
		s.respondError(w, req, err)
		return
	}
	b.Close() // an error is the client's going away
}

// respondBuffered is for forms that need the whole text at once.
func (s *Server) respondBuffered(w http.ResponseWriter, req *http.Request, out output, encode func(io.Writer) error) {
	var b bytes.Buffer
	err := encode(&b)
	body := b.Bytes()
	switch {
	case err != nil:
	case out.format == formatYAML:
		body, err = yaml.JSONToYAML(body)
	default:
		body = indent(body)
	}
	if err != nil {
		s.respondError(w, req, err)
		return
	}
	w.Header().Set("Content-Type", out.mediaType)
	s.write(w, req, http.StatusOK, body)
}

// writeJSONList writes the frame of a list: head is its TypeMeta and metadata
// and whatever precedes the array, which is called name.
func writeJSONList(w io.Writer, head any, name string, n int, item func(i int) (any, error)) error {
	h, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, `%s,%q:[`, h[:len(h)-1], name); err != nil {
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range n {
		v, err := item(i)
		if err != nil {
			return err
		}
		b.Reset()
		if i > 0 {
			b.WriteByte(',')
		}
		if err := enc.Encode(v); err != nil {
			return err
		}
		if _, err := w.Write(b.Bytes()[:b.Len()-1]); err != nil { // without Encode's newline
			return err
		}
	}
	_, err = io.WriteString(w, "]}\n")
	return err
}

// listHead are the members of a list before its items.
type listHead struct {
	metav1.TypeMeta `json:",inline"`
	ListMeta        metav1.ListMeta                `json:"metadata"`
	Columns         []metav1.TableColumnDefinition `json:"columnDefinitions,omitempty"`
}

func (l *list) head(gv schema.GroupVersion, kind string) listHead {
	return listHead{TypeMeta: metav1.TypeMeta{Kind: kind, APIVersion: gv.String()}, ListMeta: l.meta}
}

func (l *list) writeJSON(w io.Writer) error {
	return writeJSONList(w, l.head(l.gv, l.kind), "items", len(l.items), func(i int) (any, error) { return l.bare(i) })
}

func (l *list) writeMetadata(w io.Writer, as schema.GroupVersionKind) error {
	gv := as.GroupVersion()
	return writeJSONList(w, l.head(gv, as.Kind), "items", len(l.items), func(i int) (any, error) {
		return partialMetadata(l.items[i], gv.String())
	})
}

// tableColumns are the columns of the list's kind, from an empty object if the
// list is empty.
func (s *Server) tableColumns(l *list) ([]metav1.TableColumnDefinition, error) {
	if len(l.items) > 0 {
		return s.printer.columns(l.items[0])
	}
	if l.of.Custom != nil {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(l.gvk)
		return s.printer.columns(u)
	}
	obj, err := codec.Scheme().New(l.gvk)
	if err != nil {
		return nil, err
	}
	codec.Default(obj)
	return s.printer.columns(obj)
}

// writeTable prints the items one by one.
func (s *Server) writeTable(w io.Writer, out output, l *list, columns []metav1.TableColumnDefinition) error {
	head := l.head(out.convert.GroupVersion(), "Table")
	head.Columns = columns
	return writeJSONList(w, head, "rows", len(l.items), func(i int) (any, error) {
		obj, err := l.item(i)
		if err != nil {
			return nil, err
		}
		t, err := s.printer.row(out, obj)
		if err != nil {
			return nil, err
		}
		if len(t.Rows) != 1 {
			return nil, fmt.Errorf("printing %T: %d rows, want one", obj, len(t.Rows))
		}
		return t.Rows[0], nil
	})
}

// protoMessage is what generated protobuf types have.
type protoMessage interface {
	Size() int
	Marshal() ([]byte, error)
}

func (l *list) writeProtobuf(w io.Writer) error {
	return l.writeProtobufItems(w, runtime.TypeMeta{APIVersion: l.gv.String(), Kind: l.kind}, l.item)
}

func (l *list) writeMetadataProtobuf(w io.Writer, as schema.GroupVersionKind) error {
	apiVersion := as.GroupVersion().String()
	return l.writeProtobufItems(w, runtime.TypeMeta{APIVersion: apiVersion, Kind: as.Kind}, func(i int) (runtime.Object, error) {
		return partialMetadata(l.items[i], apiVersion)
	})
}

// Fields of runtime.Unknown and of every list message.
const (
	tagUnknownRaw             = 2<<3 | 2
	tagUnknownContentEncoding = 3<<3 | 2
	tagUnknownContentType     = 4<<3 | 2
	tagListMetadata           = 1<<3 | 2
	tagListItems              = 2<<3 | 2
)

// writeProtobufItems writes what marshalEnvelope would, in two passes over the
// items: protobuf puts lengths first.
func (l *list) writeProtobufItems(w io.Writer, typ runtime.TypeMeta, item func(i int) (runtime.Object, error)) error {
	metaBytes, err := l.meta.Marshal()
	if err != nil {
		return err
	}
	size := prefixedSize(len(metaBytes))
	for i := range l.items {
		m, err := message(item, i)
		if err != nil {
			return err
		}
		size += prefixedSize(m.Size())
	}
	// With no raw bytes, Unknown's own encoding is its TypeMeta, followed by
	// the two empty strings that we write after the list.
	head := (&runtime.Unknown{TypeMeta: typ})
	headBytes, err := head.Marshal()
	if err != nil {
		return err
	}
	tail := []byte{tagUnknownContentEncoding, 0, tagUnknownContentType, 0}
	headBytes = bytes.TrimSuffix(headBytes, tail)
	buf := append(append([]byte{}, protobufMagic...), headBytes...)
	buf = binary.AppendUvarint(append(buf, tagUnknownRaw), uint64(size))
	buf = binary.AppendUvarint(append(buf, tagListMetadata), uint64(len(metaBytes)))
	if _, err := w.Write(append(buf, metaBytes...)); err != nil {
		return err
	}
	for i := range l.items {
		m, err := message(item, i)
		if err != nil {
			return err
		}
		data, err := m.Marshal()
		if err != nil {
			return err
		}
		if _, err := w.Write(binary.AppendUvarint([]byte{tagListItems}, uint64(len(data)))); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	_, err = w.Write(tail)
	return err
}

func message(item func(i int) (runtime.Object, error), i int) (protoMessage, error) {
	obj, err := item(i)
	if err != nil {
		return nil, err
	}
	m, ok := obj.(protoMessage)
	if !ok {
		return nil, fmt.Errorf("encoding %T: it has no protobuf form", obj)
	}
	return m, nil
}

// prefixedSize is the size of a field with a one-byte tag and a length.
func prefixedSize(n int) int {
	return 1 + len(binary.AppendUvarint(nil, uint64(n))) + n
}
