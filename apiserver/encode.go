package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"edged/apiserver/registry"
)

// versioned returns obj, which is shared, in another version of its kind.
func versioned(k *registry.Kind, obj runtime.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	if obj.GetObjectKind().GroupVersionKind() == gvk {
		return obj, nil
	}
	return k.ToVersion(obj.DeepCopyObject(), gvk)
}

// encodeObject encodes one object that has its TypeMeta. It does not change it.
func encodeObject(out output, obj runtime.Object) ([]byte, error) {
	switch out.format {
	case formatProtobuf:
		return marshalEnvelope(obj)
	case formatYAML:
		return yaml.Marshal(obj)
	}
	body, err := marshalJSON(obj)
	if err != nil || !out.pretty {
		return body, err
	}
	return indent(body), nil
}

// marshalJSON ends the document with a newline, as upstream does.
func marshalJSON(obj any) ([]byte, error) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(obj); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", obj, err)
	}
	return b.Bytes(), nil
}

func indent(body []byte) []byte {
	var b bytes.Buffer
	if json.Indent(&b, body, "", "  ") != nil {
		return body
	}
	return b.Bytes()
}

// protobufMagic begins every protobuf document of Kubernetes.
var protobufMagic = []byte("k8s\x00")

// marshalEnvelope encodes an object as Kubernetes' protobuf: the magic and a
// runtime.Unknown around its message.
func marshalEnvelope(obj runtime.Object) ([]byte, error) {
	m, ok := obj.(runtime.ProtobufMarshaller)
	if !ok {
		return nil, fmt.Errorf("encoding %T: it has no protobuf form", obj)
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	unk := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
	size := uint64(m.Size())
	// The raw message's own tag and length take at most 1 + 10 bytes.
	buf := make([]byte, len(protobufMagic)+unk.Size()+11+int(size))
	n, err := unk.NestedMarshalTo(buf[len(protobufMagic):], m, size)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", obj, err)
	}
	copy(buf, protobufMagic)
	return buf[:len(protobufMagic)+n], nil
}

// listMeta is the metadata of a list.
func listMeta(revision, next string, remaining *int64) metav1.ListMeta {
	return metav1.ListMeta{ResourceVersion: revision, Continue: next, RemainingItemCount: remaining}
}
