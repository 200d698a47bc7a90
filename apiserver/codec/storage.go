package codec

import (
	"bytes"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// magic begins every protobuf value that kube-apiserver stores.
var magic = []byte("k8s\x00")

// encrypted begins every value that Kubernetes' encryption at rest has sealed.
var encrypted = []byte("k8s:enc:")

// Kind encodes and decodes the objects of one kind, in its storage version.
type Kind struct {
	GVK schema.GroupVersionKind
	New func() runtime.Object

	typeMeta runtime.TypeMeta
}

// NewKind returns the codec of a kind; newObj makes an empty object of its
// storage version.
func NewKind(gvk schema.GroupVersionKind, newObj func() runtime.Object) *Kind {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	return &Kind{GVK: gvk, New: newObj, typeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}}
}

// unmarshaler is what every generated protobuf type has.
type unmarshaler interface {
	Unmarshal([]byte) error
}

// Encode returns obj, which must be of the kind's storage version, as the
// store keeps it. Map keys are sorted: equal objects give equal bytes.
func (k *Kind) Encode(obj runtime.Object) ([]byte, error) {
	m, ok := obj.(runtime.ProtobufMarshaller)
	if !ok {
		return nil, fmt.Errorf("encoding %s: %T has no protobuf form", k.GVK.Kind, obj)
	}
	size := uint64(m.Size())
	unk := runtime.Unknown{TypeMeta: k.typeMeta}
	// The raw message's own tag and length, at most 1 + 10 bytes.
	buf := make([]byte, len(magic)+unk.Size()+11+int(size))
	n, err := unk.NestedMarshalTo(buf[len(magic):], m, size)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", k.GVK.Kind, err)
	}
	copy(buf, magic)
	return buf[:len(magic)+n], nil
}

// Decode reads a stored value. The object is of the kind's storage version
// whatever version was stored, has its TypeMeta and the defaults of its
// version set, and shares no memory with data.
func (k *Kind) Decode(data []byte) (runtime.Object, error) {
	if !bytes.HasPrefix(data, magic) {
		return k.decodeOther(data)
	}
	var unk runtime.Unknown
	if err := unk.Unmarshal(data[len(magic):]); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", k.GVK.Kind, err)
	}
	if unk.TypeMeta != k.typeMeta {
		return k.decodeOther(data)
	}
	obj := k.New()
	m, ok := obj.(unmarshaler)
	if !ok {
		return nil, fmt.Errorf("decoding %s: %T has no protobuf form", k.GVK.Kind, obj)
	}
	if err := m.Unmarshal(unk.Raw); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", k.GVK.Kind, err)
	}
	obj.GetObjectKind().SetGroupVersionKind(k.GVK)
	Scheme().Default(obj)
	return obj, nil
}

// decodeOther reads JSON, and versions other than the storage version, as
// another API server may have left them.
func (k *Kind) decodeOther(data []byte) (runtime.Object, error) {
	var obj runtime.Object
	var err error
	if bytes.HasPrefix(data, encrypted) {
		return nil, fmt.Errorf("decoding %s: it is sealed, and this device cannot open it (`edged secrets status`)", k.GVK.Kind)
	}
	if bytes.HasPrefix(data, magic) {
		obj, _, err = protobuf.NewSerializer(Scheme(), Scheme()).Decode(data, nil, nil)
	} else {
		obj, _, err = Codecs().UniversalDeserializer().Decode(data, nil, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("decoding %s: %w", k.GVK.Kind, err)
	}
	Scheme().Default(obj)
	out, err := ToVersion(obj, k.GVK)
	if err != nil {
		return nil, fmt.Errorf("decoding %s: %w", k.GVK.Kind, err)
	}
	return out, nil
}
