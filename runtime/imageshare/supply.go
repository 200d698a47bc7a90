package imageshare

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"edged/runtime/engine"
)

// maxAsked is how many devices are asked at a time.
const maxAsked = 8

// holder is a device that has something.
type holder struct {
	peer     peer
	blob     engine.Blob
	imported bool
}

// ask asks devices by HEAD, all of them, and returns those that have it, in the
// order given.
func (s *Share) ask(ctx context.Context, peers []peer, path string) []holder {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make([]*holder, len(peers))
	room := make(chan struct{}, maxAsked)
	var wg sync.WaitGroup
	for i, p := range peers {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if f, err := s.head(ctx, p, path); err == nil {
				answers[i] = &f
			}
		})
	}
	wg.Wait()
	var out []holder
	for _, f := range answers {
		if f != nil {
			out = append(out, *f)
		}
	}
	return out
}

func (s *Share) head(ctx context.Context, p peer, path string) (holder, error) {
	resp, err := s.do(ctx, http.MethodHead, p, path, nil)
	if err != nil {
		return holder{}, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return holder{}, fmt.Errorf("%s: %s", p.name, resp.Status)
	}
	return holder{
		peer:     p,
		blob:     engine.Blob{MediaType: resp.Header.Get("Content-Type"), Digest: resp.Header.Get(digestHeader), Size: resp.ContentLength},
		imported: resp.Header.Get(importedHeader) != "",
	}, nil
}

func (s *Share) do(ctx context.Context, method string, p peer, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+p.addr+path, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return s.client.Do(req)
}

// Supply begins a pull: engine.Source.
func (s *Share) Supply(name string) engine.Supply { return &supply{s: s, name: name} }

// supply is one pull. Blobs of one image come at the same time.
type supply struct {
	s    *Share
	name string

	mu    sync.Mutex
	known []peer // who has parts of the image, the best first
}

func (u *supply) Resolve(ctx context.Context) (engine.Blob, bool, bool) {
	repo := repository(u.name)
	tag := strings.TrimLeft(u.name[len(repo):], ":@")
	peers, naming := u.s.peers(u.name)
	path := manifestPath(u.name, tag)
	has := u.s.ask(ctx, peers[:naming], path)
	if len(has) == 0 {
		has = u.s.ask(ctx, peers[naming:], path)
	}
	has = slices.DeleteFunc(has, func(f holder) bool { return f.blob.Digest == "" || f.blob.Size <= 0 })
	if len(has) == 0 {
		return engine.Blob{}, false, false
	}
	// A tag may mean different things to them: the first one's is taken.
	for _, f := range has {
		if f.blob.Digest == has[0].blob.Digest {
			u.learn(f.peer)
		}
	}
	return has[0].blob, has[0].imported, true
}

func (u *supply) learn(p peer) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.known, p) {
		u.known = append(u.known, p)
	}
}

func (u *supply) candidates() []peer {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.known)
}

func (u *supply) Blob(b engine.Blob, reg engine.OpenFunc) engine.Transfer {
	return &transfer{u: u, b: b, registry: reg}
}

// transfer is one blob: from devices that have it, else from the registry under a
// claim.
type transfer struct {
	u        *supply
	b        engine.Blob
	registry engine.OpenFunc

	from  []peer // who has it
	claim *claim // held while it comes from the registry
}

// Begin finds out who has the blob. If nobody has, it waits for this device's
// turn; then somebody may.
func (t *transfer) Begin(ctx context.Context) error {
	s := t.u.s
	candidates := t.u.candidates()
	if len(candidates) == 0 {
		peers, naming := s.peers(repository(t.u.name) + "@" + t.b.Digest)
		candidates = peers[:naming]
	}
	if t.find(ctx, candidates) {
		return nil
	}
	c, err := s.acquire(ctx, t.b.Digest)
	if err != nil {
		return err
	}
	t.claim = c
	if c == nil {
		return nil
	}
	peers, _ := s.peers()
	if t.find(ctx, slices.DeleteFunc(peers, func(p peer) bool { return !slices.Contains(c.holders, p.name) })) {
		t.claim.release(found)
		t.claim = nil
	}
	return nil
}

// find asks who of some has the blob, and remembers them for the others of the
// image.
func (t *transfer) find(ctx context.Context, some []peer) bool {
	for _, f := range t.u.s.ask(ctx, some, blobPath(t.u.name, t.b.Digest)) {
		if f.blob.Size == t.b.Size {
			t.from = append(t.from, f.peer)
			t.u.learn(f.peer)
		}
	}
	slices.SortFunc(t.from, func(a, b peer) int { return rank(t.u.s.cfg.NodeName+t.b.Digest, a.name, b.name) })
	return len(t.from) > 0
}

// Open reads from a device, or from the registry when none gives it.
func (t *transfer) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	for range t.from {
		p := t.from[0]
		// The next connection, if there must be one, is to the next device.
		t.from = append(t.from[1:], p)
		rc, err := t.u.s.open(ctx, p, blobPath(t.u.name, t.b.Digest), offset, t.b.Size)
		if err == nil || ctx.Err() != nil {
			return rc, err
		}
		t.u.s.cfg.Logger.Debug("a device did not give a blob", "device", p.name, "blob", t.b.Digest, "err", err)
	}
	return t.registry(ctx, offset)
}

func (t *transfer) Close(done bool) {
	if t.claim == nil {
		return
	}
	how := failed
	if done {
		how = fetched
	}
	t.claim.release(how)
	t.claim = nil
}

// open reads a blob from an offset on.
func (s *Share) open(ctx context.Context, p peer, path string, offset, size int64) (io.ReadCloser, error) {
	header := http.Header{}
	want := http.StatusOK
	if offset > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
		want = http.StatusPartialContent
	}
	resp, err := s.do(ctx, http.MethodGet, p, path, header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want || resp.ContentLength != size-offset {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s with %d bytes, want %d", p.name, resp.Status, resp.ContentLength, size-offset)
	}
	return resp.Body, nil
}

// claim is this device's turn at a blob.
type claim struct {
	holders []string
	release func(outcome)
}

// outcome is how a turn ended.
type outcome int

const (
	failed  outcome = iota // it comes back, perhaps
	found                  // another device gives the blob
	fetched                // the blob is here
)

// acquire waits for this device's turn. It is nil if there is nobody to ask: then
// the device goes alone.
func (s *Share) acquire(ctx context.Context, digest string) (*claim, error) {
	self := peer{name: s.cfg.NodeName}
	peers, _ := s.peers()
	if len(peers) == 0 {
		return nil, nil
	}
	order := append(peers, self)
	slices.SortFunc(order, func(a, b peer) int { return rank(digest, a.name, b.name) })
	for _, p := range order {
		var c *claim
		var err error
		if p == self {
			c, err = s.acquireHere(ctx, digest)
		} else {
			c, err = s.acquireAt(ctx, p, digest)
		}
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s.cfg.Logger.Debug("a device gave no turn at a blob", "device", p.name, "blob", digest, "err", err)
	}
	return nil, nil
}

func (s *Share) acquireHere(ctx context.Context, digest string) (*claim, error) {
	holders, release, err := s.claims.acquire(ctx, digest, s.cfg.NodeName)
	if err != nil {
		return nil, err
	}
	return &claim{holders, func(how outcome) {
		if how != failed {
			s.claims.settle(digest, s.cfg.NodeName, how == fetched)
		}
		release()
	}}, nil
}

// whileAlive calls gone if a device is not ready any more before stop is called.
func (s *Share) whileAlive(name string, gone func()) (stop func()) {
	end := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		t := time.NewTicker(lookAgain)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				if !s.alive(name) {
					gone()
					return
				}
			}
		}
	})
	return func() { close(end); ended.Wait() }
}

// acquireAt holds the claim by the connection, which release closes. It gives up
// on a device that is not ready any more.
func (s *Share) acquireAt(ctx context.Context, p peer, digest string) (*claim, error) {
	// The pull's end must not end the claim before release has told how it went.
	held, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, hangUp)
	resp, err := s.do(held, http.MethodGet, p, ClaimPrefix+digest, nil)
	if err != nil {
		hangUp()
		return nil, err
	}
	giveUp := func(err error) (*claim, error) {
		hangUp()
		resp.Body.Close()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return giveUp(fmt.Errorf("%s answered %s", p.name, resp.Status))
	}
	turned := s.whileAlive(p.name, hangUp)
	line, err := bufio.NewReader(io.LimitReader(resp.Body, 1<<16)).ReadString('\n')
	turned()
	holders, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "go ")
	if err != nil || !ok {
		return giveUp(errors.Join(fmt.Errorf("%s gave no turn", p.name), err))
	}
	stop()
	return &claim{strings.Split(holders, ","), func(how outcome) {
		if how != failed {
			s.settleAt(ctx, p, digest, how)
		}
		hangUp()
		resp.Body.Close()
	}}, nil
}

// settleAt tells how a turn ended well. Who cannot be told keeps the turn for a
// device that does not come back, for half a minute.
func (s *Share) settleAt(ctx context.Context, p peer, digest string, how outcome) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	path := ClaimPrefix + digest
	if how == fetched {
		path += "?" + hasQuery
	}
	if resp, err := s.do(ctx, http.MethodDelete, p, path, nil); err == nil {
		resp.Body.Close()
	}
}
