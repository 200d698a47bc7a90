package join

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Path is where a device asks to join, on the API's port.
const Path = "/edged/v1/join"

const (
	// protocol is the version of Request and Answer.
	protocol = 1
	// maxRequest bounds what a stranger can make the server read.
	maxRequest = 16 << 10
	// failuresPerMinute is how many wrong tokens one address may try.
	failuresPerMinute = 10
	// maxStrangers bounds the addresses that failures are counted for.
	maxStrangers = 1024
)

// Request is what a device says of itself.
type Request struct {
	Protocol int      `json:"protocol"`
	TokenID  string   `json:"tokenID"`
	Secret   string   `json:"secret"`
	NodeName string   `json:"nodeName"`
	PeerURLs []string `json:"peerURLs"`
	// PublicKey is what the cluster's Secrets are to be readable with; older
	// devices tell none.
	PublicKey []byte `json:"publicKey,omitempty"`
}

// Member is one that the joining device will find.
type Member struct {
	ID       uint64   `json:"id"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
}

// Answer is what a member must have.
type Answer struct {
	Protocol int `json:"protocol"`
	// CA, CAKey and ServiceAccountKey are PEM (identity.Shared).
	CA                []byte `json:"ca"`
	CAKey             []byte `json:"caKey"`
	ServiceAccountKey []byte `json:"serviceAccountKey"`
	// Settings are the cluster's flags by name.
	Settings map[string]string `json:"settings"`
	// Members are those that there are, the joining device among them.
	Members []Member `json:"members"`
}

type refusal struct {
	Error string `json:"error"`
}

// Server answers join requests. It is an http.Handler for Path.
type Server struct {
	// Check is Tokens.Check.
	Check func(id, secret string) error
	// Admit makes the device a member. It is called again when the device did
	// not get the answer.
	Admit  func(context.Context, Request) (Answer, error)
	Logger *slog.Logger

	mu       sync.Mutex
	minute   time.Time
	failures map[string]int // by address, in this minute
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		refuse(w, http.StatusMethodNotAllowed, "POST only")
		return
	}
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	if s.failed(from, 0) >= failuresPerMinute {
		w.Header().Set("Retry-After", "60")
		refuse(w, http.StatusTooManyRequests, "too many wrong tokens: wait a minute")
		return
	}
	var req Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "the request cannot be read: "+err.Error())
		return
	}
	if req.Protocol != protocol {
		refuse(w, http.StatusBadRequest, "this cluster speaks another version of the join protocol: use the same release of edged")
		return
	}
	if err := s.Check(req.TokenID, req.Secret); err != nil {
		if s.failed(from, 1) == failuresPerMinute {
			s.Logger.Warn("wrong join tokens: the address is refused for a minute", "address", from)
		}
		refuse(w, http.StatusUnauthorized, ErrRefused.Error())
		return
	}
	answer, err := s.Admit(r.Context(), req)
	var bad *RequestError
	switch {
	case errors.As(err, &bad):
		refuse(w, http.StatusUnprocessableEntity, bad.Error())
		return
	case err != nil:
		s.Logger.Warn("a device could not join", "device", req.NodeName, "address", from, "token", req.TokenID, "err", err)
		refuse(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	s.Logger.Info("a device joins", "device", req.NodeName, "address", from, "token", req.TokenID)
	answer.Protocol = protocol
	w.Header().Set("Content-Type", "application/json")
	// A client that is gone asks again.
	_ = json.NewEncoder(w).Encode(answer)
}

// RequestError is Admit's for a request that will never be granted.
type RequestError struct{ Reason string }

func (e *RequestError) Error() string { return e.Reason }

// failed adds n to the failures of an address in this minute and returns them.
func (s *Server) failed(from string, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.failures == nil || now.Sub(s.minute) >= time.Minute || len(s.failures) >= maxStrangers {
		s.minute, s.failures = now, map[string]int{}
	}
	if n > 0 {
		s.failures[from] += n
	}
	return s.failures[from]
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(refusal{reason}) // a client that is gone
}
