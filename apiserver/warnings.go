package apiserver

import (
	"context"
	"net/http"
	"sync"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/warning"
)

// Upstream's bounds of Warning headers.
const (
	maxWarningsBytes = 4 * 1024
	maxWarningRunes  = 256
)

// withWarnings lets whoever handles the request (strategies, admission) send
// Warning headers through k8s.io/apiserver/pkg/warning.
func withWarnings(ctx context.Context, w http.ResponseWriter) context.Context {
	return warning.WithWarningRecorder(ctx, &warnings{w: w})
}

type warnings struct {
	w http.ResponseWriter

	mu    sync.Mutex // guards what follows
	sent  map[string]bool
	bytes int
}

// AddWarning adds a Warning header, once for each text.
func (r *warnings) AddWarning(agent, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if text == "" || r.sent[text] || r.bytes >= maxWarningsBytes {
		return
	}
	if utf8.RuneCountInString(text) > maxWarningRunes {
		text = string([]rune(text)[:maxWarningRunes])
		if r.sent[text] {
			return
		}
	}
	if agent == "" {
		agent = "-"
	}
	header, err := net.NewWarningHeader(299, agent, text)
	if err != nil {
		return
	}
	if r.sent == nil {
		r.sent = map[string]bool{}
	}
	r.sent[text] = true
	r.bytes += len(text)
	r.w.Header().Add("Warning", header)
}
