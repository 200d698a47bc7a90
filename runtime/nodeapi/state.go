package nodeapi

import (
	"context"
	"encoding/json"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/internal/usage"
	"edged/runtime/engine"
	"edged/runtime/pod"
)

// Stats measures what the device and its Pods use.
type Stats interface {
	Summary(ctx context.Context, cpuAndMemoryOnly bool) (*statsapi.Summary, error)
	Report(ctx context.Context, namespace string) (*usage.Report, error)
}

// write answers in JSON, as the kubelet does whatever is asked for.
func (s *server) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Logger.Debug("an answer was not sent", "err", err)
	}
}

func (s *server) summary(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "Internal Error: parse form failed: "+err.Error(), http.StatusInternalServerError)
		return
	}
	only := r.Form["only_cpu_and_memory"]
	sum, err := s.Stats.Summary(r.Context(), len(only) == 1 && only[0] == "true")
	if err != nil {
		http.Error(w, "Internal Error: "+err.Error(), http.StatusInternalServerError)
		return
	}
	s.write(w, sum)
}

// usage is what other devices ask; no kubelet has it.
func (s *server) usage(w http.ResponseWriter, r *http.Request) {
	report, err := s.Stats.Report(r.Context(), r.URL.Query().Get(usage.Namespace))
	if err != nil {
		http.Error(w, "Internal Error: "+err.Error(), http.StatusInternalServerError)
		return
	}
	s.write(w, report)
}

// running lists what runs, whether or not the cluster knows of it: of each Pod its
// names and its containers' images.
func (s *server) running(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	at := map[string]int{}
	for _, c := range s.Engine.List() {
		uid, ns, name := pod.Owner(c)
		if uid == "" || c.State != engine.Running {
			continue
		}
		i, ok := at[uid]
		if !ok {
			i = len(list.Items)
			at[uid] = i
			list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: types.UID(uid)}})
		}
		if container := pod.ContainerOf(c); container != "" { // not what only holds the Pod's namespaces
			spec := &list.Items[i].Spec
			spec.Containers = append(spec.Containers, corev1.Container{Name: container, Image: c.Image})
		}
	}
	s.write(w, &list)
}
