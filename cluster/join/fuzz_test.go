package join_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"edged/cluster/join"
)

// FuzzRequest: whatever a join request holds, it is answered in JSON, and a
// wrong token admits nobody.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"protocol":1,"tokenID":"abcdef","secret":"s","nodeName":"n"}`), false)
	f.Add([]byte(`{"protocol":1,"tokenID":"abcdef","secret":"right"}`), true)
	f.Add([]byte(`{"protocol":99}`), true)
	f.Add([]byte(`{"protocol":1,"csr":"AAA="}{}`), true)
	f.Add([]byte(`[`), false)
	f.Fuzz(func(t *testing.T, body []byte, right bool) {
		admitted := false
		s := &join.Server{
			Check: func(id, secret string) error {
				if !right {
					return join.ErrRefused
				}
				return nil
			},
			Admit: func(context.Context, join.Request) (join.Answer, error) {
				admitted = true
				return join.Answer{}, nil
			},
			Logger: slog.New(slog.DiscardHandler),
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, join.Path, bytes.NewReader(body)))
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%d %q is no JSON", w.Code, w.Body)
		}
		if admitted != (w.Code == http.StatusOK) || admitted && !right {
			t.Errorf("admitted %v, answered %d", admitted, w.Code)
		}
	})
}
