package podautoscaler

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

const (
	// stabilization is how long a higher recommendation holds if nothing else is said.
	stabilization = 5 * time.Minute
	// longest is the longest time that a behavior may name.
	longest = time.Hour
)

// point is a number of replicas, or their change, at a time.
type point struct {
	replicas int32
	at       time.Time
}

// History is what is remembered of one autoscaler, in order of time.
type History struct {
	recommendations []point
	ups, downs      []point // what was added, removed
	// metricsWritten is when figures alone were last written.
	metricsWritten time.Time
}

// forget drops what no window reaches.
func (h *History) forget(now time.Time) {
	old := func(p point) bool { return now.Sub(p.at) > longest }
	h.recommendations = slices.DeleteFunc(h.recommendations, old)
	h.ups, h.downs = slices.DeleteFunc(h.ups, old), slices.DeleteFunc(h.downs, old)
}

// Scaled remembers a change of the scale.
func (h *History) Scaled(from, to int32, now time.Time) {
	if to > from {
		h.ups = append(h.ups, point{to - from, now})
	} else {
		h.downs = append(h.downs, point{from - to, now})
	}
}

// changed is how many replicas were added or removed in the last seconds.
func changed(points []point, seconds int32, now time.Time) (n int32) {
	for _, p := range points {
		if p.at.After(now.Add(-time.Duration(seconds) * time.Second)) {
			n += p.replicas
		}
	}
	return n
}

// bounds are what a number of replicas is held to.
type bounds struct {
	current, least, most int32
	behavior             *autoscalingv2.HorizontalPodAutoscalerBehavior
}

// verdict is a number of replicas and why it is that.
type verdict struct {
	replicas int32
	limited  bool
	// able and limit are reason and message of the conditions AbleToScale and
	// ScalingLimited.
	able, limit [2]string
}

var (
	ready    = [2]string{"ReadyForNewScale", "recommended size matches current size"}
	lowering = [2]string{"ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"}
	raising  = [2]string{"ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"}

	within   = [2]string{"DesiredWithinRange", "the desired count is within the acceptable range"}
	tooMany  = [2]string{"TooManyReplicas", "the desired replica count is more than the maximum replica count"}
	tooFew   = [2]string{"TooFewReplicas", "the desired replica count is less than the minimum replica count"}
	tooSoon  = [2]string{"ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"}
	tooQuick = [2]string{"ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"}
)

// settle makes of what the metrics ask for what is done, and remembers it.
func (h *History) settle(desired int32, b bounds, now time.Time) verdict {
	if b.behavior == nil {
		return h.settlePlain(desired, b, now)
	}
	up, down := b.behavior.ScaleUp, b.behavior.ScaleDown
	lowest, highest := desired, desired
	for _, r := range h.recommendations {
		if r.at.After(now.Add(-window(up, 0))) {
			lowest = min(lowest, r.replicas)
		}
		if r.at.After(now.Add(-window(down, stabilization))) {
			highest = max(highest, r.replicas)
		}
	}
	h.recommendations = append(h.recommendations, point{desired, now})
	stable := min(max(b.current, lowest), highest)
	v := verdict{replicas: stable, able: ready, limit: within}
	if stable != desired {
		v.able = lowering
		if desired >= b.current {
			v.able = raising
		}
	}
	switch {
	case stable > b.current:
		limit := max(h.upLimit(b.current, up, now), b.current)
		most, why := b.most, tooMany
		if most > limit {
			most, why = limit, tooSoon
		}
		if stable > most {
			v.replicas, v.limited, v.limit = most, true, why
		}
	case stable < b.current:
		limit := min(h.downLimit(b.current, down, now), b.current)
		least, why := b.least, tooFew
		if least < limit {
			least, why = limit, tooQuick
		}
		if stable < least {
			v.replicas, v.limited, v.limit = least, true, why
		}
	}
	return v
}

// settlePlain is without a behavior: the highest recommendation of five minutes, at most
// twice the replicas, or four.
func (h *History) settlePlain(desired int32, b bounds, now time.Time) verdict {
	stable := desired
	for _, r := range h.recommendations {
		if !r.at.Before(now.Add(-stabilization)) {
			stable = max(stable, r.replicas)
		}
	}
	h.recommendations = append(h.recommendations, point{desired, now})
	v := verdict{replicas: stable, able: ready, limit: within}
	if stable != desired {
		v.able = lowering
	}
	most, why := b.most, tooMany
	if limit := max(2*b.current, 4); most > limit {
		most, why = limit, tooSoon
	}
	switch {
	case stable < b.least:
		v.replicas, v.limited, v.limit = b.least, true, tooFew
	case stable > most:
		v.replicas, v.limited, v.limit = most, true, why
	}
	return v
}

func window(r *autoscalingv2.HPAScalingRules, otherwise time.Duration) time.Duration {
	if r == nil || r.StabilizationWindowSeconds == nil {
		return otherwise
	}
	return time.Duration(*r.StabilizationWindowSeconds) * time.Second
}

// upLimit is how many replicas there may be by the rules for more.
func (h *History) upLimit(current int32, rules *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return h.limit(current, rules, now, func(began float64, p autoscalingv2.HPAScalingPolicy) float64 {
		if p.Type == autoscalingv2.PercentScalingPolicy {
			return math.Ceil(began * (1 + float64(p.Value)/100)) // else it might never grow
		}
		return began + float64(p.Value)
	}, true)
}

// downLimit is how many replicas there must be by the rules for fewer.
func (h *History) downLimit(current int32, rules *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return h.limit(current, rules, now, func(began float64, p autoscalingv2.HPAScalingPolicy) float64 {
		if p.Type == autoscalingv2.PercentScalingPolicy {
			return math.Trunc(began * (1 - float64(p.Value)/100))
		}
		return began - float64(p.Value)
	}, false)
}

// limit goes through the policies; more tells whether a larger number is the larger
// change.
func (h *History) limit(current int32, rules *autoscalingv2.HPAScalingRules, now time.Time, propose func(began float64, p autoscalingv2.HPAScalingPolicy) float64, more bool) int32 {
	if rules == nil || len(rules.Policies) == 0 {
		return current
	}
	choice := autoscalingv2.MaxChangePolicySelect
	if rules.SelectPolicy != nil {
		choice = *rules.SelectPolicy
	}
	if choice == autoscalingv2.DisabledPolicySelect {
		return current
	}
	largest := (choice == autoscalingv2.MaxChangePolicySelect) == more
	var out float64
	for i, p := range rules.Policies {
		began := current - changed(h.ups, p.PeriodSeconds, now) + changed(h.downs, p.PeriodSeconds, now)
		switch n := propose(float64(began), p); {
		case i == 0:
			out = n
		case largest:
			out = max(out, n)
		default:
			out = min(out, n)
		}
	}
	return int32(min(max(out, math.MinInt32), math.MaxInt32))
}
