package daemonset

import (
	"sync"
	"time"
)

const (
	// firstHold and maxHold are upstream's pace of replacing Pods that fail on
	// one Node.
	firstHold = time.Second
	maxHold   = 15 * time.Minute
)

// holds remember on which Nodes Pods of a DaemonSet failed. A hold that has long
// been over is forgotten when another is noted.
type holds struct {
	mu sync.Mutex
	at map[holdKey]hold
}

type holdKey struct {
	set        string // UID
	generation int64
	node       string
}

type hold struct {
	since time.Time
	delay time.Duration
}

// left is how long a failed Pod has to stay.
func (h *holds) left(k holdKey, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.at[k]
	if !ok {
		return 0
	}
	return e.since.Add(e.delay).Sub(now)
}

// note says that a failed Pod was removed now: the next one has to stay longer.
func (h *holds) note(k holdKey, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for other, e := range h.at {
		if now.Sub(e.since) > 2*maxHold || now.Before(e.since) {
			delete(h.at, other)
		}
	}
	if h.at == nil {
		h.at = map[holdKey]hold{}
	}
	delay := firstHold
	if e, ok := h.at[k]; ok {
		delay = min(2*e.delay, maxHold)
	}
	h.at[k] = hold{since: now, delay: delay}
}
