package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

const (
	// attempt bounds one request; the leader may be elected meanwhile.
	attempt = 20 * time.Second
	// maxAnswer is far above any cluster's.
	maxAnswer = 1 << 20
	// retryFirst and retryMost are the pauses between rounds of all addresses.
	retryFirst = 500 * time.Millisecond
	retryMost  = 10 * time.Second
)

// Client asks a cluster to let this device in.
type Client struct {
	// Addrs are host:port of devices of the cluster, of which any may be down.
	Addrs  []string
	Token  Token
	Logger *slog.Logger
	// Waiting, if set, is told why the device was not let in yet, when that changes.
	Waiting func(err error)
}

// A permanent error does not go away by asking again.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Join asks until a device answers. It returns when the answer is final or ctx
// ends.
func (c Client) Join(ctx context.Context, req Request) (*Answer, error) {
	req.Protocol, req.TokenID, req.Secret = protocol, c.Token.ID, c.Token.Secret
	var told string
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		var last error
		for _, addr := range c.Addrs {
			answer, err := c.ask(ctx, addr, req)
			if err == nil {
				return answer, nil
			}
			err = fmt.Errorf("join by %s: %w", addr, err)
			if errors.As(err, &permanent{}) {
				return nil, err
			}
			last = err
		}
		if last.Error() != told {
			told = last.Error()
			c.Logger.Warn("the cluster does not let this device in yet, trying again", "err", last)
			if c.Waiting != nil {
				c.Waiting(last)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (last: %w)", ctx.Err(), last)
		case <-time.After(pause):
		}
	}
}

// ask sends one request. Nothing is sent before the server has shown a
// certificate of the pinned CA.
func (c Client) ask(ctx context.Context, addr string, req Request) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	tr := &http.Transport{TLSClientConfig: c.pinned(), DisableKeepAlives: true, TLSHandshakeTimeout: 10 * time.Second}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+Path, bytes.NewReader(body))
	if err != nil {
		return nil, permanent{err}
	}
	post.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: tr}).Do(post)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var r refusal
		if json.Unmarshal(data, &r) != nil || r.Error == "" {
			r.Error = resp.Status
		}
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusBadRequest, http.StatusUnprocessableEntity:
			return nil, permanent{errors.New(r.Error)}
		}
		return nil, errors.New(r.Error)
	}
	var answer Answer
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	}
	if answer.Protocol != protocol {
		return nil, permanent{fmt.Errorf("its answer is of version %d, this edged understands %d", answer.Protocol, protocol)}
	}
	return &answer, nil
}

// errWrongCA is what a joining device says of a server that is not of the
// token's cluster.
var errWrongCA = errors.New("its certificate is not of the cluster that the token is for: nothing was sent to it")

// pinned trusts exactly what leads to the pinned CA. Names and addresses are not
// looked at: a device is known by its key, and may be reached by any address.
func (c Client) pinned() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// What follows verifies more, by another rule.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots, others := x509.NewCertPool(), x509.NewCertPool()
			found := false
			for _, cert := range cs.PeerCertificates[1:] {
				if PinOf(cert) == c.Token.Pin && cert.IsCA {
					roots.AddCert(cert)
					found = true
				} else {
					others.AddCert(cert) // while the CA is being replaced
				}
			}
			if !found {
				return permanent{errWrongCA}
			}
			leaf := cs.PeerCertificates[0]
			// The clock of a device that joins may be anywhere.
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			if err != nil {
				return permanent{fmt.Errorf("%w (%w)", errWrongCA, err)}
			}
			return nil
		},
	}
}
