package podautoscaler

import (
	"errors"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"edged/controller/podset"
)

const (
	defaultTolerance = 0.1
	// A Pod's processor time counts from cpuInitialization after its start on, or once it
	// has been ready for a window; one that was never ready readinessDelay after its start
	// does not count.
	cpuInitialization = 5 * time.Minute
	readinessDelay    = 30 * time.Second
)

// tolerance is how far from 1 a ratio may be that nothing is done about.
type tolerance struct{ down, up float64 }

func toleranceOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) tolerance {
	t := tolerance{defaultTolerance, defaultTolerance}
	if b != nil && b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
		t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
	}
	if b != nil && b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
		t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
	}
	return t
}

func (t tolerance) holds(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

// sample is a Pod's figure, in thousandths.
type sample struct {
	value  int64
	at     time.Time
	window time.Duration
}

// samples are by the Pod's name.
type samples map[string]sample

// usageOf takes a resource's use of Pods, or of one container of theirs, from what
// metrics.k8s.io tells. A Pod of which a figure is missing is not in it.
func usageOf(metrics []metricsv1beta1.PodMetrics, resource corev1.ResourceName, container string) samples {
	out := samples{}
	for _, m := range metrics {
		s, complete := sample{at: m.Timestamp.Time, window: m.Window.Duration}, false
		for _, c := range m.Containers {
			if container != "" && c.Name != container {
				continue
			}
			q, ok := c.Usage[resource]
			complete = ok
			if !ok {
				break
			}
			s.value += q.MilliValue()
		}
		if complete {
			out[m.Name] = s
		}
	}
	return out
}

// groups are Pods by what is known of them.
type groups struct {
	ready            int32
	unready, missing []string
}

// group sorts Pods, and removes from m what does not count.
func group(pods []*corev1.Pod, m samples, resource corev1.ResourceName, now time.Time) (g groups) {
	for _, p := range pods {
		s, found := m[p.Name]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed:
			delete(m, p.Name)
		case p.Status.Phase == corev1.PodPending:
			g.unready = append(g.unready, p.Name)
			delete(m, p.Name)
		case !found:
			g.missing = append(g.missing, p.Name)
		case resource == corev1.ResourceCPU && beginning(p, s, now):
			g.unready = append(g.unready, p.Name)
			delete(m, p.Name)
		default:
			g.ready++
		}
	}
	return g
}

// beginning reports whether a Pod's processor time says nothing of its load yet.
func beginning(p *corev1.Pod, s sample, now time.Time) bool {
	c := podset.Condition(p, corev1.PodReady)
	if c == nil || p.Status.StartTime == nil {
		return true
	}
	began := p.Status.StartTime.Time
	if began.Add(cpuInitialization).After(now) {
		return c.Status == corev1.ConditionFalse || s.at.Before(c.LastTransitionTime.Add(s.window))
	}
	return c.Status == corev1.ConditionFalse && began.Add(readinessDelay).After(c.LastTransitionTime.Time)
}

var (
	errNoPods    = errors.New("no pods returned by selector while calculating replica count")
	errNoSamples = errors.New("did not receive metrics for targeted pods (pods might be unready)")
)

// target is what samples are held against.
type target struct {
	// ratio is of what is used and what should be; it is told what is used, too.
	ratio func(samples) (ratio float64, told figures, err error)
	// full is what a Pod of which nothing is known is taken to use when the others use
	// too little.
	full func(pod string) int64
}

// figures are what the status shows.
type figures struct {
	utilization int32 // percent of what was requested
	average     int64
}

// replicasFor is how many replicas samples ask for.
func replicasFor(current int32, pods []*corev1.Pod, m samples, resource corev1.ResourceName, t tolerance, want target, now time.Time) (int32, figures, error) {
	if len(pods) == 0 {
		return 0, figures{}, errNoPods
	}
	g := group(pods, m, resource, now)
	if len(m) == 0 {
		return 0, figures{}, errNoSamples
	}
	ratio, told, err := want.ratio(m)
	if err != nil {
		return 0, figures{}, err
	}
	growing := len(g.unready) > 0 && ratio > 1
	if !growing && len(g.missing) == 0 {
		if t.holds(ratio) {
			return current, told, nil
		}
		return ceil(ratio * float64(g.ready)), told, nil
	}
	for _, name := range g.missing {
		switch {
		case ratio < 1:
			m[name] = sample{value: want.full(name)}
		case ratio > 1:
			m[name] = sample{}
		}
	}
	if growing {
		for _, name := range g.unready {
			m[name] = sample{}
		}
	}
	again, _, err := want.ratio(m)
	if err != nil {
		return 0, told, err
	}
	if t.holds(again) || ratio < 1 && again > 1 || ratio > 1 && again < 1 {
		return current, told, nil
	}
	n := ceil(again * float64(len(m)))
	if again < 1 && n > current || again > 1 && n < current {
		return current, told, nil
	}
	return n, told, nil
}

func ceil(f float64) int32 { return int32(min(math.Ceil(f), math.MaxInt32)) }

// averageTarget holds the mean of samples against a value.
func averageTarget(value int64) target {
	return target{
		ratio: func(m samples) (float64, figures, error) {
			var sum int64
			for _, s := range m {
				sum += s.value
			}
			average := sum / int64(len(m))
			return float64(average) / float64(value), figures{average: average}, nil
		},
		full: func(string) int64 { return value },
	}
}

// utilizationTarget holds samples against a part, in percent, of what their Pods request.
func utilizationTarget(percent int32, requests map[string]int64) target {
	return target{
		ratio: func(m samples) (float64, figures, error) {
			var used, requested, n int64
			for name, s := range m {
				if r, ok := requests[name]; ok {
					used, requested, n = used+s.value, requested+r, n+1
				}
			}
			if requested == 0 {
				return 0, figures{}, errors.New("no metrics returned matched known pods")
			}
			f := figures{int32(used * 100 / requested), used / n}
			return float64(f.utilization) / float64(percent), f, nil
		},
		full: func(pod string) int64 { return requests[pod] * int64(max(100, percent)) / 100 },
	}
}

// requests are what Pods, or one container of theirs, request of a resource, in
// thousandths.
func requests(pods []*corev1.Pod, container string, resource corev1.ResourceName) (map[string]int64, error) {
	out := map[string]int64{}
	for _, p := range pods {
		if of := p.Spec.Resources; of != nil && len(of.Requests) > 0 && container == "" {
			q, ok := of.Requests[resource]
			if !ok {
				return nil, fmt.Errorf("missing pod-level request for %s in Pod %s", resource, p.Name)
			}
			out[p.Name] = q.MilliValue()
			continue
		}
		n, err := containerRequests(p, container, resource)
		if err != nil {
			return nil, err
		}
		out[p.Name] = n
	}
	return out, nil
}

func containerRequests(p *corev1.Pod, container string, resource corev1.ResourceName) (sum int64, err error) {
	var all []*corev1.Container
	for i := range p.Spec.Containers {
		all = append(all, &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	found := container == ""
	for _, c := range all {
		if container != "" && c.Name != container {
			continue
		}
		q, ok := c.Resources.Requests[resource]
		if !ok {
			return 0, fmt.Errorf("missing request for %s in container %s of Pod %s", resource, c.Name, p.Name)
		}
		sum, found = sum+q.MilliValue(), true
	}
	if !found {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, p.Name)
	}
	return sum, nil
}
