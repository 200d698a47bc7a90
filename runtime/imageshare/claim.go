package imageshare

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// keepTurn is how long a device that failed may come back first.
	keepTurn = 30 * time.Second
	// forgetAfter is how long it is known who got a blob.
	forgetAfter = 10 * time.Minute
	// maxClaims bounds the blobs that are known, maxWaiting those who wait.
	maxClaims, maxWaiting = 1024, 256
	// maxHolders that are told; they have it all the same.
	maxHolders = 8
	// hasQuery of a request that settles a claim: the device has the blob.
	hasQuery = "has"
)

var errTooMany = errors.New("too many claims")

// claims are the blobs whose turns this device gives.
type claims struct {
	alive func(device string) bool

	mu      sync.Mutex
	waiting int
	blobs   map[string]*blob
}

// blob is one blob's turn.
type blob struct {
	device  string        // whose turn it is, "" nobody's
	turn    uint64        // counts them
	settled bool          // it needs no other one
	ended   chan struct{} // closed when a turn ends, and replaced
	first   string        // who may come back first, until
	until   time.Time
	holders []string // who has it, the newest last
	used    time.Time
	waiting int
}

func newClaims(alive func(string) bool) *claims {
	return &claims{alive: alive, blobs: map[string]*blob{}}
}

// acquire waits for a device's turn and tells who has the blob. release ends the
// turn, which may have ended.
func (c *claims) acquire(ctx context.Context, digest, device string) (holders []string, release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := c.blob(digest)
	if err != nil || c.waiting >= maxWaiting {
		return nil, nil, errTooMany
	}
	c.waiting++
	b.waiting++
	defer func() { c.waiting--; b.waiting-- }()
	for !c.free(b, device) {
		ended := b.ended
		c.mu.Unlock()
		t := time.NewTimer(lookAgain)
		select {
		case <-ctx.Done():
		case <-ended:
		case <-t.C:
		}
		t.Stop()
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	b.device, b.settled, b.used = device, false, time.Now()
	b.turn++
	turn := b.turn
	return slices.Clone(b.holders), func() { c.end(digest, turn) }, nil
}

// blob finds or makes the record, and forgets old ones.
func (c *claims) blob(digest string) (*blob, error) {
	if b := c.blobs[digest]; b != nil {
		return b, nil
	}
	now := time.Now()
	for d, b := range c.blobs {
		if b.device == "" && b.waiting == 0 && (now.Sub(b.used) > forgetAfter || len(c.blobs) >= maxClaims) {
			delete(c.blobs, d)
		}
	}
	if len(c.blobs) >= maxClaims {
		return nil, errTooMany
	}
	b := &blob{ended: make(chan struct{}), used: now}
	c.blobs[digest] = b
	return b, nil
}

// free says whether a device may have its turn. One that is not ready any more
// has lost its own.
func (c *claims) free(b *blob, device string) bool {
	switch {
	case b.device == device: // its former connection broke
		return true
	case b.device != "" && c.alive(b.device):
		return false
	}
	return b.first == "" || b.first == device || time.Now().After(b.until) || !c.alive(b.first)
}

func (c *claims) end(digest string, turn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blobs[digest]
	if b == nil || b.turn != turn || b.device == "" {
		return
	}
	b.first, b.until = "", time.Time{}
	if !b.settled {
		b.first, b.until = b.device, time.Now().Add(keepTurn)
	}
	b.device, b.used = "", time.Now()
	close(b.ended)
	b.ended = make(chan struct{})
}

// settle notes that a device has a blob, or needs no turn since another gives it.
// The turn goes on until it ends.
func (c *claims) settle(digest, device string, has bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blobs[digest]
	if b == nil {
		return
	}
	b.settled = b.settled || b.device == device
	if !has {
		return
	}
	b.holders = append(slices.DeleteFunc(b.holders, func(d string) bool { return d == device }), device)
	b.holders = b.holders[max(len(b.holders)-maxHolders, 0):]
}

// serveClaim keeps the request open until the device closes it: that ends its
// turn. The header comes at once, the line that says go with the turn.
func (s *Share) serveClaim(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return
	}
	holders, release, err := s.claims.acquire(r.Context(), r.PathValue("digest"), s.cfg.Device(r))
	if err != nil {
		if errors.Is(err, errTooMany) {
			fmt.Fprintln(w, "full")
		}
		return
	}
	defer release()
	if _, err := fmt.Fprintln(w, "go "+strings.Join(holders, ",")); err != nil || rc.Flush() != nil {
		return
	}
	<-r.Context().Done()
}

func (s *Share) serveSettle(w http.ResponseWriter, r *http.Request) {
	s.claims.settle(r.PathValue("digest"), s.cfg.Device(r), r.URL.Query().Has(hasQuery))
	w.WriteHeader(http.StatusNoContent)
}
