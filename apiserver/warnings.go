package apiserver

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/warning"
)

// Upstream's bounds of Warning headers: of all, and of each once all do not fit.
const (
	maxWarningsRunes = 4 * 1024
	maxWarningRunes  = 256
)

// withWarnings lets whoever handles the request (strategies, admission) send
// Warning headers through k8s.io/apiserver/pkg/warning.
func withWarnings(ctx context.Context, w http.ResponseWriter) context.Context {
	return warning.WithWarningRecorder(ctx, &warnings{w: w})
}

type warnings struct {
	w http.ResponseWriter

	mu        sync.Mutex // guards what follows
	ordered   []warningText
	runes     int  // written
	truncated bool // all of it did not fit: each is cut
}

type warningText struct{ agent, text string }

// AddWarning adds a Warning header, once for each text. As upstream's does, it writes
// them whole while they fit, then those that were written and all others cut.
func (r *warnings) AddWarning(agent, text string) {
	if agent == "" {
		agent = "-"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	one := warningText{agent, text}
	if text == "" || r.truncated && r.runes >= maxWarningsRunes || slices.ContainsFunc(r.ordered, func(o warningText) bool { return o.text == text }) {
		return
	}
	r.ordered = append(r.ordered, one)
	if r.truncated || r.runes+utf8.RuneCountInString(text) <= maxWarningsRunes {
		r.write(one)
		return
	}
	r.truncated, r.runes = true, 0
	r.w.Header().Del("Warning")
	for _, o := range r.ordered {
		r.write(o)
	}
}

// write needs mu.
func (r *warnings) write(o warningText) {
	if r.truncated {
		if r.runes >= maxWarningsRunes {
			return
		}
		if runes := []rune(o.text); len(runes) > maxWarningRunes {
			o.text = string(runes[:maxWarningRunes])
		}
	}
	header, err := net.NewWarningHeader(299, o.agent, o.text)
	if err != nil {
		return // bytes that are no UTF-8
	}
	r.runes += utf8.RuneCountInString(o.text)
	r.w.Header().Add("Warning", header)
}
