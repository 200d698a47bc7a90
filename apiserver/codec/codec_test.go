package codec_test

import (
	"bytes"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"edged/apiserver/codec"
)

var podKind = codec.NewKind(corev1.SchemeGroupVersion.WithKind("Pod"), func() runtime.Object { return new(corev1.Pod) })

func pod() *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	codec.Default(p)
	p.SetGroupVersionKind(podKind.GVK)
	return p
}

// TestStoredFormIsUpstreams: what is stored is what kube-apiserver stores, and
// equal objects are equal bytes.
func TestStoredFormIsUpstreams(t *testing.T) {
	data, err := podKind.Encode(pod())
	if err != nil {
		t.Fatal(err)
	}
	upstream := protobuf.NewSerializer(codec.Scheme(), codec.Scheme())
	var want bytes.Buffer
	if err := upstream.Encode(pod(), &want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want.Bytes()) {
		t.Errorf("%q\nupstream: %q", data, want.Bytes())
	}
	got, err := podKind.Decode(data)
	if err != nil || !equality.Semantic.DeepEqual(got, pod()) {
		t.Errorf("read back: %v, %v", got, err)
	}
}

func TestDecodeReadsWhatOthersLeft(t *testing.T) {
	got, err := podKind.Decode([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}]}}`))
	if err != nil || got.(*corev1.Pod).Spec.RestartPolicy != corev1.RestartPolicyAlways {
		t.Errorf("JSON, without defaults: %v, %v", got, err)
	}

	hpa := codec.NewKind(autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), func() runtime.Object { return new(autoscalingv2.HorizontalPodAutoscaler) })
	old := codec.NewKind(autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), func() runtime.Object { return new(autoscalingv1.HorizontalPodAutoscaler) })
	cpu := int32(70)
	data, err := old.Encode(&autoscalingv1.HorizontalPodAutoscaler{Spec: autoscalingv1.HorizontalPodAutoscalerSpec{MaxReplicas: 3, TargetCPUUtilizationPercentage: &cpu}})
	if err != nil {
		t.Fatal(err)
	}
	got, err = hpa.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	v2, ok := got.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok || v2.GroupVersionKind() != hpa.GVK || len(v2.Spec.Metrics) != 1 || *v2.Spec.Metrics[0].Resource.Target.AverageUtilization != 70 {
		t.Errorf("an older version: %#v", got)
	}
}

// TestToVersionOfEvents: a type of several groups converts to the one asked
// for.
func TestToVersionOfEvents(t *testing.T) {
	for _, gvk := range []schema.GroupVersionKind{
		{Version: "v1", Kind: "Event"}, {Group: "events.k8s.io", Version: "v1", Kind: "Event"},
	} {
		obj, err := codec.ToVersion(&corev1.Event{Reason: "r"}, gvk)
		if err != nil || obj.GetObjectKind().GroupVersionKind() != gvk {
			t.Errorf("%v: %T %v", gvk, obj, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, err := podKind.Encode(pod())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("k8s\x00"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		obj, err := podKind.Decode(data)
		if err != nil {
			return
		}
		if gvk := obj.GetObjectKind().GroupVersionKind(); gvk != podKind.GVK {
			t.Errorf("decoded %v", gvk)
		}
	})
}
