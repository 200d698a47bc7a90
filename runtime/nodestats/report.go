package nodestats

import (
	"context"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"edged/internal/usage"
)

// Report is the processor and memory that the device and its Pods use, those of one
// namespace unless ns is empty. A container that is too young for a rate is left out.
func (s *Source) Report(ctx context.Context, ns string) (*usage.Report, error) {
	sum, err := s.Summary(ctx, true)
	if err != nil {
		return nil, err
	}
	out := &usage.Report{Pods: []usage.Pod{}}
	out.Node, _ = s.use("node", sum.Node.Memory)
	for _, p := range sum.Pods {
		if ns != "" && p.PodRef.Namespace != ns {
			continue
		}
		told := usage.Pod{Namespace: p.PodRef.Namespace, Name: p.PodRef.Name, UID: p.PodRef.UID}
		for _, c := range p.Containers {
			if u, ok := s.use(p.PodRef.UID+"/"+c.Name, c.Memory); ok {
				told.Containers = append(told.Containers, usage.Container{Name: c.Name, Use: u})
			}
		}
		out.Pods = append(out.Pods, told)
	}
	return out, nil
}

func (s *Source) use(key string, memory *statsapi.MemoryStats) (usage.Use, bool) {
	last, ok := s.rates.last(key)
	if !ok {
		return usage.Use{}, false
	}
	return usage.Use{Age: s.cfg.Now().Sub(last.at), Window: last.window, CPUNanoCores: *last.rate, MemoryBytes: *memory.WorkingSetBytes}, true
}
