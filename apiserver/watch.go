package apiserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"edged/apiserver/registry"
)

// watch streams the changes of a resource until the client goes away, the
// timeout is over, or the registry ends the watch.
func (c *call) watch() error {
	out, err := c.negotiate(watchEndpoint)
	if err != nil {
		return err
	}
	if out.format == formatYAML { // YAML documents cannot be framed
		return negotiation.NewNotAcceptableError([]string{
			"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"})
	}
	opts, err := listOptions(c.req, c.info)
	if err != nil {
		return err
	}
	timeout := time.Duration(float64(c.limits.WatchTimeout) * (1 + rand.Float64()))
	if opts.TimeoutSeconds != nil && *opts.TimeoutSeconds > 0 {
		timeout = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(c.req.Context(), timeout)
	defer cancel()
	events, err := c.reg.Watch(ctx, c.gr, c.info.Namespace, opts)
	if err != nil {
		return err
	}
	defer events.Stop()
	c.streamWatch(out, events)
	return nil
}

func (c *call) streamWatch(out output, events *registry.Watch) {
	flusher := http.NewResponseController(c.w)
	mediaType := out.mediaType
	if out.format == formatProtobuf {
		mediaType += ";stream=watch"
	}
	c.w.Header().Set("Content-Type", mediaType)
	c.w.WriteHeader(http.StatusOK)
	if err := flusher.Flush(); err != nil {
		return
	}
	frames := &frameWriter{w: c.w, out: out, kind: c.res.kind, gvk: c.res.gvk, printer: c.printer}
	for {
		ev, ok := <-events.C()
		if !ok {
			return
		}
		err := frames.write(ev)
		for err == nil { // what is already there goes out with the same flush
			select {
			case ev, ok = <-events.C():
				if !ok {
					flusher.Flush() // the watch is over
					return
				}
				err = frames.write(ev)
				continue
			default:
			}
			break
		}
		if err != nil {
			c.logger.Debug("watch ended", "path", c.req.URL.Path, "err", err)
			return
		}
		if flusher.Flush() != nil {
			return
		}
	}
}

// frameWriter writes watch events: JSON documents one after the other, or
// protobuf messages each after its length (4 bytes, big endian).
type frameWriter struct {
	w       io.Writer
	out     output
	kind    *registry.Kind
	gvk     schema.GroupVersionKind
	printer *printer

	headed bool // a table's columns went out with the first event
	buf    bytes.Buffer
}

func (f *frameWriter) write(ev watch.Event) error {
	obj, err := f.transform(ev.Object)
	if err != nil {
		return err
	}
	if f.out.format == formatProtobuf {
		return f.writeProtobuf(ev.Type, obj)
	}
	return f.writeJSON(ev.Type, obj)
}

// transform brings the object of an event into the form the client wants.
func (f *frameWriter) transform(obj runtime.Object) (runtime.Object, error) {
	if status, ok := obj.(*metav1.Status); ok {
		return typedStatus(*status), nil
	}
	obj, err := versioned(f.kind, obj, f.gvk)
	if err != nil {
		return nil, err
	}
	switch {
	case f.out.table():
		t, err := f.printer.table(f.out, obj)
		if err != nil {
			return nil, err
		}
		if f.headed {
			t.ColumnDefinitions = nil
		}
		f.headed = true
		return t, nil
	case f.out.metadata():
		return partialMetadata(obj, f.out.convert.GroupVersion().String())
	}
	return obj, nil
}

func (f *frameWriter) writeJSON(typ watch.EventType, obj runtime.Object) error {
	f.buf.Reset()
	fmt.Fprintf(&f.buf, `{"type":%q,"object":`, string(typ))
	if err := json.NewEncoder(&f.buf).Encode(obj); err != nil {
		return fmt.Errorf("encoding a watch event of %T: %w", obj, err)
	}
	f.buf.Truncate(f.buf.Len() - 1) // Encode's newline
	f.buf.WriteString("}\n")
	return f.send(f.buf.Bytes())
}

func (f *frameWriter) writeProtobuf(typ watch.EventType, obj runtime.Object) error {
	raw, err := marshalEnvelope(obj)
	if err != nil {
		return err
	}
	event := metav1.WatchEvent{Type: string(typ), Object: runtime.RawExtension{Raw: raw}}
	size := event.Size()
	frame := make([]byte, 4+size)
	binary.BigEndian.PutUint32(frame, uint32(size))
	if _, err := event.MarshalTo(frame[4:]); err != nil {
		return fmt.Errorf("encoding a watch event of %T: %w", obj, err)
	}
	return f.send(frame)
}

// maxKeptBuffer is what a watch keeps between events: thousands of watches
// rest most of the time.
const maxKeptBuffer = 4 << 10

func (f *frameWriter) send(b []byte) error {
	_, err := f.w.Write(b)
	if f.buf.Cap() > maxKeptBuffer {
		f.buf = bytes.Buffer{}
	}
	return err
}
