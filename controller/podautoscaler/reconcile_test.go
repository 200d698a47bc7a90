package podautoscaler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	custommetricsv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetricsv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"k8s.io/utils/ptr"
)

var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// farm is a Deployment's Pods, each with the containers main and side, and what they use.
type farm struct {
	pods    []*corev1.Pod
	used    map[string][2]int64 // thousandths of a core, of main and side
	custom  map[string]int64    // by object
	outside []int64
	err     error
	now     time.Time
	history History
	hpa     *autoscalingv2.HorizontalPodAutoscaler
	scale   int32
}

func newFarm(n int, used ...int64) *farm {
	f := &farm{used: map[string][2]int64{}, custom: map[string]int64{}, now: start, scale: int32(n)}
	for i := range n {
		f.add(fmt.Sprint("p", i), used...)
	}
	f.hpa = &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "h", Generation: 3},
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: ptr.To[int32](1), MaxReplicas: 100, Metrics: []autoscalingv2.MetricSpec{cpu(50)}},
	}
	return f
}

// add makes a Pod that has run for an hour, requests a tenth of a core for each container
// and uses what is given; without that nothing is known of it.
func (f *farm) add(name string, used ...int64) *corev1.Pod {
	container := func(name string) corev1.Container {
		return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("100Mi")}}}
	}
	began := metav1.NewTime(start.Add(-time.Hour))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": "farm"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{container("main"), container("side")}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &began,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: began}}},
	}
	if len(used) == 2 {
		f.used[name] = [2]int64{used[0], used[1]}
	}
	f.pods = append(f.pods, p)
	return p
}

func (f *farm) Pods(_ context.Context, ns string, selector labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
	var out []metricsv1beta1.PodMetrics
	for _, p := range f.pods {
		u, ok := f.used[p.Name]
		if !ok || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		use := func(n int64) corev1.ResourceList {
			return corev1.ResourceList{"cpu": *resource.NewMilliQuantity(n, resource.DecimalSI), "memory": *resource.NewQuantity(n<<20, resource.BinarySI)}
		}
		out = append(out, metricsv1beta1.PodMetrics{
			ObjectMeta: p.ObjectMeta, Timestamp: metav1.NewTime(f.now), Window: metav1.Duration{Duration: 15 * time.Second},
			Containers: []metricsv1beta1.ContainerMetrics{{Name: "main", Usage: use(u[0])}, {Name: "side", Usage: use(u[1])}},
		})
	}
	return out, f.err
}

func (f *farm) Custom(_ context.Context, _ string, of Object, _ autoscalingv2.MetricIdentifier) (out []custommetricsv1beta2.MetricValue, err error) {
	for name, n := range f.custom {
		if of.Pods != nil || of.Name == name {
			out = append(out, custommetricsv1beta2.MetricValue{DescribedObject: corev1.ObjectReference{Name: name}, Value: *resource.NewQuantity(n, resource.DecimalSI)})
		}
	}
	return out, f.err
}

func (f *farm) External(context.Context, string, autoscalingv2.MetricIdentifier) (out []externalmetricsv1beta1.ExternalMetricValue, err error) {
	for _, n := range f.outside {
		out = append(out, externalmetricsv1beta1.ExternalMetricValue{Value: *resource.NewQuantity(n, resource.DecimalSI)})
	}
	return out, f.err
}

// round has the autoscaler looked at, and does what it decides.
func (f *farm) round(t *testing.T) Outcome {
	t.Helper()
	w := World{HPA: f.hpa, Pods: f.pods, Metrics: f, History: &f.history, Now: f.now,
		Scale: &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: f.scale}, Status: autoscalingv1.ScaleStatus{Replicas: f.scale, Selector: "app=farm"}}}
	o := Reconcile(t.Context(), w)
	if o.Replicas != nil {
		f.history.Scaled(f.scale, *o.Replicas, f.now)
		f.scale = *o.Replicas
	}
	f.hpa.Status = o.Status
	f.now = f.now.Add(period)
	return o
}

func cpu(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: "cpu", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
}

func condition(o Outcome, t autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, c := range o.Status.Conditions {
		if c.Type == t {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

// TestReplicas: what each kind of metric asks for.
func TestReplicas(t *testing.T) {
	value := func(s string) *resource.Quantity { return ptr.To(resource.MustParse(s)) }
	average := func(s string) autoscalingv2.MetricTarget {
		return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: value(s)}
	}
	whole := func(s string) autoscalingv2.MetricTarget {
		return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: value(s)}
	}
	named := autoscalingv2.MetricIdentifier{Name: "queue"}
	resourceOf := func(name corev1.ResourceName, target autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: name, Target: target}}
	}
	container := func(name string, percent int32) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
			Name: "cpu", Container: name, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
	}
	object := func(target autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
			DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "s"}, Target: target, Metric: named}}
	}
	external := func(target autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Metric: named, Target: target}}
	}
	pods := autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{Metric: named, Target: average("10")}}
	young := func(ready corev1.ConditionStatus) func(*farm) {
		return func(f *farm) {
			p := f.add("young", 100, 100)
			p.Status.StartTime = ptr.To(metav1.NewTime(start.Add(-time.Minute)))
			p.Status.Conditions[0].Status, p.Status.Conditions[0].LastTransitionTime = ready, metav1.NewTime(start.Add(-50*time.Second))
			f.scale++
		}
	}
	for _, tt := range []struct {
		name   string
		used   []int64 // of each of four Pods, which request 200
		change func(*farm)
		metric autoscalingv2.MetricSpec
		want   int32
		told   string // the figure shown
	}{
		{"twice what it should be", []int64{150, 50}, nil, cpu(50), 8, "100% 200m"},
		{"half of it", []int64{40, 10}, nil, cpu(50), 2, "25% 50m"},
		{"within a tenth", []int64{60, 48}, nil, cpu(50), 4, "54% 108m"},
		{"more than a tenth", []int64{60, 56}, nil, cpu(50), 5, "58% 116m"},
		{"a value for each", []int64{60, 60}, nil, resourceOf("cpu", average("40m")), 12, "120m"},
		{"memory", []int64{60, 60}, nil, resourceOf("memory", average("60Mi")), 8, "120Mi"},
		{"one container", []int64{90, 5}, nil, container("main", 45), 8, "90% 90m"},
		{"the other one", []int64{90, 5}, nil, container("side", 5), 4, "5% 5m"},
		{"an unknown Pod is idle when there is too little", []int64{100, 100}, func(f *farm) { f.add("silent"); f.scale++ }, cpu(50), 8, "100% 200m"},
		{"and busy when there is too much", []int64{20, 20}, func(f *farm) { f.add("silent"); f.scale++ }, cpu(50), 4, "20% 40m"},
		{"a Pod that ends does not count", []int64{100, 100}, func(f *farm) { f.add("gone", 0, 0).DeletionTimestamp = ptr.To(metav1.Now()) }, cpu(50), 8, "100% 200m"},
		{"a young Pod that is not ready is idle when there is too little", []int64{100, 100}, young(corev1.ConditionFalse), cpu(50), 8, "100% 200m"},
		{"one that is counts", []int64{100, 100}, young(corev1.ConditionTrue), cpu(50), 10, "100% 200m"},
		{"Pods' own metric", nil, func(f *farm) { f.custom = map[string]int64{"p0": 10, "p1": 30, "p2": 10, "p3": 30} }, pods, 8, "20"},
		{"an object's", nil, func(f *farm) { f.custom["s"] = 30 }, object(whole("20")), 6, "30"},
		{"an object's, divided", nil, func(f *farm) { f.custom["s"] = 70 }, object(average("10")), 7, "17500m"},
		{"another's", nil, func(f *farm) { f.outside = []int64{10, 50} }, external(whole("20")), 12, "60"},
		{"another's, divided", nil, func(f *farm) { f.outside = []int64{10, 50} }, external(average("10")), 6, "15"},
		{"the behavior's own tolerance", []int64{60, 56}, func(f *farm) {
			f.hpa.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{Tolerance: value("0.2")}, ScaleDown: &autoscalingv2.HPAScalingRules{}}
		}, cpu(50), 4, "58% 116m"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFarm(4, tt.used...)
			f.hpa.Spec.Metrics = []autoscalingv2.MetricSpec{tt.metric}
			if tt.change != nil {
				tt.change(f)
			}
			r := &round{World: World{HPA: f.hpa, Pods: f.pods, Metrics: f, History: &f.history, Now: f.now,
				Scale: &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: f.scale}, Status: autoscalingv1.ScaleStatus{Replicas: f.scale, Selector: "app=farm"}}}, out: &Outcome{}}
			n, _, err := r.desired(t.Context())
			if n != tt.want || err != nil {
				t.Errorf("%d %v, want %d", n, err, tt.want)
			}
			c := current(&r.out.Status.CurrentMetrics[0])
			var told []string
			if c.AverageUtilization != nil {
				told = append(told, fmt.Sprint(*c.AverageUtilization, "%"))
			}
			for _, q := range []*resource.Quantity{c.AverageValue, c.Value} {
				if q != nil {
					told = append(told, q.String())
				}
			}
			if got := strings.ReplaceAll(strings.Join(told, " "), " %", "%"); got != tt.told {
				t.Errorf("told %q, want %q", got, tt.told)
			}
		})
	}
}

// TestRefusals: what cannot be acted on is told in upstream's words, and nothing is scaled.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*farm, *World)
		which  autoscalingv2.HorizontalPodAutoscalerConditionType
		want   string
	}{
		{"no target", func(_ *farm, w *World) { w.Scale, w.ScaleErr = nil, errors.New("gone") }, autoscalingv2.AbleToScale,
			"False FailedGetScale: the HPA controller was unable to get the target's current scale: gone"},
		{"scaled to nothing by hand", func(_ *farm, w *World) { w.Scale.Spec.Replicas = 0 }, autoscalingv2.ScalingActive,
			"False ScalingDisabled: scaling is disabled since the replica count of the target is zero"},
		{"no selector", func(_ *farm, w *World) { w.Scale.Status.Selector = "" }, autoscalingv2.ScalingActive,
			"False InvalidSelector: the HPA target's scale is missing a selector"},
		{"two for one", func(_ *farm, w *World) { w.Others = map[string]labels.Selector{"ns/b": labels.Everything()} }, autoscalingv2.ScalingActive,
			"False AmbiguousSelector: pods by selector app=farm are controlled by more than one HPA (e.g. ns/b)"},
		{"no metrics", func(f *farm, _ *World) { f.err = errors.New("nobody answers") }, autoscalingv2.ScalingActive,
			"False FailedGetResourceMetric: the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: nobody answers"},
		{"no figures", func(f *farm, _ *World) { clear(f.used) }, autoscalingv2.ScalingActive,
			"False FailedGetResourceMetric: the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"},
		{"no request", func(f *farm, _ *World) { f.pods[1].Spec.Containers[1].Resources.Requests = nil }, autoscalingv2.ScalingActive,
			"False FailedGetResourceMetric: the HPA was unable to compute the replica count: failed to get cpu utilization: missing request for cpu in container side of Pod p1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFarm(2, 100, 100)
			w := World{HPA: f.hpa, Pods: f.pods, Metrics: f, History: &f.history, Now: f.now,
				Scale: &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 2}, Status: autoscalingv1.ScaleStatus{Replicas: 2, Selector: "app=farm"}}}
			tt.change(f, &w)
			o := Reconcile(t.Context(), w)
			if got := condition(o, tt.which); got != tt.want || o.Replicas != nil {
				t.Errorf("%q, replicas %v\nwant %q", got, o.Replicas, tt.want)
			}
		})
	}
	// One metric that fails does not keep another from asking for more, but from taking away.
	f := newFarm(4, 150, 50)
	f.hpa.Spec.Metrics = append(f.hpa.Spec.Metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "q"}, Target: autoscalingv2.MetricTarget{Value: ptr.To(resource.MustParse("1"))}}})
	if o := f.round(t); f.scale != 8 || !strings.HasPrefix(condition(o, autoscalingv2.ScalingActive), "True ValidMetricFound") || len(o.Warnings) == 0 {
		t.Errorf("%d, %+v", f.scale, o)
	}
	f = newFarm(4, 10, 10)
	f.hpa.Spec.Metrics = append(f.hpa.Spec.Metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "q"}, Target: autoscalingv2.MetricTarget{Value: ptr.To(resource.MustParse("1"))}}})
	f.now = f.now.Add(time.Hour)
	if o := f.round(t); f.scale != 4 || !strings.HasPrefix(condition(o, autoscalingv2.ScalingActive), "False FailedGetExternalMetric") {
		t.Errorf("%d, %+v", f.scale, o)
	}
}

// TestPace: a load that comes is followed at once, as fast as the rules let; one that
// goes after five minutes.
func TestPace(t *testing.T) {
	f := newFarm(2, 100, 100) // 100 % where 50 % are wanted: doubles each round
	if o := f.round(t); f.scale != 4 || o.Reason != "cpu resource utilization (percentage of request) above target" || condition(o, autoscalingv2.AbleToScale) != "True SucceededRescale: the HPA controller was able to update the target scale to 4" {
		t.Errorf("%d, %+v", f.scale, o)
	}
	f.hpa.Spec.MaxReplicas = 6
	for i := range 2 {
		f.add(fmt.Sprint("q", i), 100, 100)
	}
	if o := f.round(t); f.scale != 6 || condition(o, autoscalingv2.ScalingLimited) != "True TooManyReplicas: the desired replica count is more than the maximum replica count" {
		t.Errorf("%d, %+v", f.scale, o)
	}
	for name := range f.used {
		f.used[name] = [2]int64{1, 1}
	}
	for i := range 2 {
		f.add(fmt.Sprint("r", i), 1, 1)
	}
	quiet := f.now
	for f.scale == 6 && f.now.Sub(quiet) < time.Hour {
		if o := f.round(t); f.scale == 6 && !strings.HasPrefix(condition(o, autoscalingv2.AbleToScale), "True ScaleDownStabilized") {
			t.Fatalf("%+v", o)
		}
	}
	if took := f.now.Sub(quiet); f.scale != 1 || took < 5*time.Minute || took > 5*time.Minute+2*period {
		t.Errorf("%d after %v", f.scale, took)
	}

	// A jump from one is to four at most.
	f = newFarm(1, 1000, 1000)
	if o := f.round(t); f.scale != 4 || !strings.HasPrefix(condition(o, autoscalingv2.ScalingLimited), "True ScaleUpLimit") {
		t.Errorf("%d, %+v", f.scale, o)
	}
	// What is outside of the bounds is brought back without a metric.
	f = newFarm(3)
	f.hpa.Spec.MaxReplicas = 2
	if o := f.round(t); f.scale != 2 || o.Reason != "Current number of replicas above Spec.MaxReplicas" {
		t.Errorf("%d, %+v", f.scale, o)
	}
	f.hpa.Spec.MinReplicas, f.hpa.Spec.MaxReplicas = ptr.To[int32](5), 9
	if o := f.round(t); f.scale != 5 || o.Reason != "Current number of replicas below Spec.MinReplicas" {
		t.Errorf("%d, %+v", f.scale, o)
	}
}

// TestBehavior: an autoscaler's own rules.
func TestBehavior(t *testing.T) {
	rules := func(window int32, selection autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
		return &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &selection, Policies: policies}
	}
	pods := func(n, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: n, PeriodSeconds: seconds}
	}
	percent := func(n, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: n, PeriodSeconds: seconds}
	}
	most, least, none := autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	for _, tt := range []struct {
		name     string
		from     int32
		wanted   []int32 // what the metrics ask for, every 15 s
		up, down *autoscalingv2.HPAScalingRules
		want     string
	}{
		{"two Pods a minute", 10, []int32{30, 30, 30, 30, 30, 30}, rules(0, most, pods(2, 60)), rules(0, most, percent(100, 15)), "12 12 12 12 14 14"},
		{"the larger change", 10, []int32{30, 30}, rules(0, most, pods(2, 60), percent(50, 60)), rules(0, most, percent(100, 15)), "15 15"},
		{"the smaller change", 10, []int32{30, 30}, rules(0, least, pods(2, 60), percent(50, 60)), rules(0, most, percent(100, 15)), "12 12"},
		{"never fewer", 10, []int32{3, 3}, rules(0, most, percent(100, 15)), rules(0, none, pods(1, 15)), "10 10"},
		{"a fifth less a minute", 10, []int32{1, 1, 1, 1, 1}, rules(0, most, percent(100, 15)), rules(0, most, percent(20, 60)), "8 8 8 8 6"},
		{"one less at a time", 10, []int32{1, 1, 1}, rules(0, most, percent(100, 15)), rules(0, least, percent(50, 15), pods(1, 15)), "9 8 7"},
		{"a peak that does not last", 4, []int32{8, 4, 8, 8, 8}, rules(30, most, percent(100, 15)), rules(0, most, percent(100, 15)), "4 4 4 8 8"},
		{"a gap that does not last", 8, []int32{8, 2, 8, 2, 2, 2}, rules(0, most, percent(100, 15)), rules(30, most, percent(100, 15)), "8 8 8 8 2 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, n, now := History{}, tt.from, start
			h.recommendations = []point{{n, now}}
			var got []string
			for _, w := range tt.wanted {
				v := h.settle(w, bounds{n, 1, 100, &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: tt.up, ScaleDown: tt.down}}, now)
				if v.replicas != n {
					h.Scaled(n, v.replicas, now)
					n = v.replicas
				}
				got = append(got, fmt.Sprint(n))
				now = now.Add(period)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("%s, want %s", s, tt.want)
			}
		})
	}
}

// TestFiguresAreNews: a load that wavers writes nothing; one that moves does, once a
// minute.
func TestFiguresAreNews(t *testing.T) {
	f := newFarm(2, 50, 44)
	f.round(t)
	f.round(t)
	was := f.hpa.Status
	at := was.Conditions[0].LastTransitionTime
	for i := range 20 {
		for name := range f.used {
			f.used[name] = [2]int64{50, 44 + int64(i%3)}
		}
		if o := f.round(t); !equality.Semantic.DeepEqual(o.Status, was) {
			t.Fatalf("round %d: %+v\nwas %+v", i, o.Status, was)
		}
	}
	writes := 0
	for i := range 40 { // ten minutes of 45 % and 55 %, which are within the tolerance
		for name := range f.used {
			f.used[name] = [2]int64{45, 45 + int64(i%2)*20}
		}
		was := f.hpa.Status
		if o := f.round(t); !equality.Semantic.DeepEqual(o.Status, was) {
			writes++
		}
	}
	if writes < 5 || writes > 11 {
		t.Errorf("%d writes in ten minutes", writes)
	}
	if f.scale != 2 || !f.hpa.Status.Conditions[0].LastTransitionTime.Equal(&at) {
		t.Errorf("%d, %+v", f.scale, f.hpa.Status)
	}
}

// TestZero: with a metric of more than its Pods a target is scaled to nothing and back.
func TestZero(t *testing.T) {
	f := newFarm(1, 10, 10)
	f.hpa.Spec.MinReplicas = ptr.To[int32](0)
	f.hpa.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "q"}, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr.To(resource.MustParse("5"))}}}}
	f.outside = []int64{0}
	f.round(t)
	f.now = f.now.Add(10 * time.Minute)
	if o := f.round(t); f.scale != 0 || !strings.HasPrefix(condition(o, autoscalingv2.ScaledToZero), "True ScaledToZero") {
		t.Fatalf("%d %+v", f.scale, o)
	}
	f.outside = []int64{12}
	if o := f.round(t); f.scale != 3 || !strings.HasPrefix(condition(o, autoscalingv2.ScaledToZero), "False NotScaledToZero") {
		t.Errorf("%d %+v", f.scale, o)
	}
}
