package inprocess

import (
	"io"
	"net/http"
	"testing"
)

func TestTransport(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X", "y")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, req.URL.Path) // the transport tells of what is too long
	})
	ask := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return Transport{h, 8}.RoundTrip(req)
	}
	resp, err := ask("/1234567")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "/1234567" || resp.StatusCode != http.StatusTeapot || resp.Header.Get("X") != "y" {
		t.Errorf("%q %v %+v", body, err, resp)
	}
	if resp, err := ask("/12345678"); err == nil {
		resp.Body.Close()
		t.Error("an answer without a bound")
	}
}
