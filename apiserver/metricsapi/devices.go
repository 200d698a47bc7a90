package metricsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"edged/internal/inprocess"
	"edged/internal/usage"
)

const (
	// Timeout is how long a device may take; it measures for a quarter of a second if
	// nobody asked lately.
	Timeout = 5 * time.Second
	// atOnce bounds the devices that a request asks at a time.
	atOnce = 16
	// maxReport is far above what 110 Pods make.
	maxReport = 4 << 20
)

// Devices is the way to the node API of devices.
type Devices interface {
	Handler(node string) (http.Handler, error)
}

// ask returns what the named devices tell, of one namespace's Pods unless ns is empty.
// One that does not answer is left out.
func (s *server) ask(ctx context.Context, nodes []string, ns string) map[string]*usage.Report {
	var mu sync.Mutex
	out := make(map[string]*usage.Report, len(nodes))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, node := range nodes {
		g.Go(func() error {
			r, err := s.report(ctx, node, ns)
			if err != nil {
				s.Logger.Debug("a device did not tell what it uses", "node", node, "err", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			out[node] = r
			return nil
		})
	}
	_ = g.Wait() // nobody returns an error
	return out
}

func (s *server) report(ctx context.Context, node, ns string) (*usage.Report, error) {
	h, err := s.Devices.Handler(node)
	if err != nil {
		return nil, err
	}
	// Not a child of the request's context: by the server in that a reverse proxy would
	// take this for its goroutine and panic in it.
	own, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	u := url.URL{Path: usage.Path}
	if ns != "" {
		u.RawQuery = url.Values{usage.Namespace: {ns}}.Encode()
	}
	req, err := http.NewRequestWithContext(own, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.RequestURI = u.RequestURI()
	resp, err := inprocess.Transport{Handler: h, MaxBytes: maxReport}.RoundTrip(req)
	if own.Err() != nil {
		return nil, own.Err()
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %d: %.200s", resp.StatusCode, body)
	}
	r := &usage.Report{}
	return r, json.Unmarshal(body, r)
}
