package nodestats

import (
	"sync"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

const (
	// shortWindow is how long use is measured that nobody asked for lately.
	shortWindow = 250 * time.Millisecond
	// minWindow is how long a rate is told before it is measured anew: several who ask
	// do not shorten each other's windows. maxWindow: a mean over longer says nothing
	// of now.
	minWindow, maxWindow = 5 * time.Second, 2 * time.Minute
)

// rates remembers what was used when, to tell how much is used now. What is not
// found in an answer any more is forgotten with it.
type rates struct {
	mu   sync.Mutex
	seen map[string]sample
}

type sample struct {
	at     time.Time
	nanos  uint64
	rate   *uint64       // nanoseconds in a second
	window time.Duration // that rate is of
}

// last is what was last told of a key.
func (r *rates) last(key string) (s sample, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok = r.seen[key]
	return s, ok && s.rate != nil
}

// fill sets usageNanoCores where an earlier sample allows it, and is true if one does
// not: what was told is remembered, and a further answer has it.
func (r *rates) fill(out *statsapi.Summary) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[string]sample{}
	fill := func(key string, c *statsapi.CPUStats) {
		at, nanos := c.Time.Time, *c.UsageCoreNanoSeconds
		old, known := r.seen[key]
		since := at.Sub(old.at)
		switch {
		case !known || since < 0 || since > maxWindow || nanos < old.nanos:
			next[key] = sample{at: at, nanos: nanos}
			fresh = true
		case since < minWindow && old.rate != nil:
			next[key] = old
		case since < shortWindow: // two who ask first at once
			next[key] = old
			fresh = true
		default:
			rate := uint64(float64(nanos-old.nanos) / since.Seconds())
			next[key] = sample{at, nanos, &rate, since}
		}
		c.UsageNanoCores = next[key].rate
	}
	fill("node", out.Node.CPU)
	for i := range out.Pods {
		p := &out.Pods[i]
		fill(p.PodRef.UID, p.CPU)
		for j := range p.Containers {
			fill(p.PodRef.UID+"/"+p.Containers[j].Name, p.Containers[j].CPU)
		}
	}
	r.seen = next
	return fresh
}
