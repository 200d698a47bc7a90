package harness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCuts cuts the power of two machines at a time as often as EDGED_CUTS says,
// as TestPi does twice.
func TestCuts(t *testing.T) {
	if os.Getenv("EDGED_CUTS") == "" {
		t.Skip("EDGED_CUTS is not set: each cut takes half a minute")
	}
	cuts, err := strconv.Atoi(os.Getenv("EDGED_CUTS"))
	must(t, err)
	hello := helloArchive(t, "arm64")
	var n tally
	var rounds atomic.Int64
	t.Run("machines", func(t *testing.T) {
		for i := range 2 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				c := newCutter(t, hello, &n)
				for r := rounds.Add(1); r <= int64(cuts); r = rounds.Add(1) {
					c.cut(int(r))
				}
				c.a.NodeReady(wide)
				c.a.PodPhase("hello", "Running", wide)
			})
		}
	})
	t.Log(&n)
	if n.loaded.Load() < int64(cuts) {
		t.Errorf("want %d cuts under load", cuts)
	}
}

// tally is what power cuts came to, over all machines of a test.
type tally struct {
	loaded, starting atomic.Int64 // cuts: under writes, and in the start after one
	acked, lost      atomic.Int64 // writes acknowledged, and of these not there later
}

func (n *tally) String() string {
	return fmt.Sprintf("%d cuts under load, %d in the start after one: %d writes acknowledged, %d lost, nothing repaired by hand",
		n.loaded.Load(), n.starting.Load(), n.acked.Load(), n.lost.Load())
}

// cutter cuts a machine's power and knows what must be there after it.
type cutter struct {
	t     *testing.T
	m     *Machine
	a     *API
	n     *tally
	acked []string
}

// newCutter has a Raspberry Pi's image run a Pod.
func newCutter(t *testing.T, archive string, n *tally) *cutter {
	t.Helper()
	m := New(t, Options{Board: "rpi", MemoryMB: 256, Config: config, Preload: []string{archive}, NBD: true})
	m.On()
	m.WaitFor(0, "edged-init: the daemon is ready", wide)
	grown(t, m)
	a := m.API(wide)
	a.NodeReady(wide)
	hello(a)
	return &cutter{t: t, m: m, a: a, n: n}
}

// cut takes the power in a flush of four writers, and in half of the rounds once
// more in a flush of the start that follows; what is not flushed is lost in part.
// Every write that was ever acknowledged must be there then, and nobody has helped.
func (c *cutter) cut(round int) {
	c.t.Helper()
	load := startLoad(c.a, round)
	load.wait(c.t, 4)
	select {
	case <-c.m.disk.CutAtFlush(1 + rand.IntN(40)):
	case <-time.After(wide):
		c.t.Fatal("four writers wait and nothing is flushed")
	}
	c.m.Cut()
	acked := load.stop()
	c.acked = append(c.acked, acked...)
	c.n.acked.Add(int64(len(acked)))
	c.n.loaded.Add(1)
	mark := c.m.Mark()
	c.m.On()
	if rand.IntN(2) == 0 && c.cutStart(mark) {
		c.n.starting.Add(1)
		mark = c.m.Mark()
		c.m.On()
	}
	c.m.WaitFor(mark, ready, wide)
	c.verify(round)
	c.t.Logf("round %d: %d writes acknowledged by this machine, %d unflushed writes of its disk lost or torn; all machines: %v", round, len(c.acked), c.m.disk.Lost, c.n)
}

const ready = "edged-init: the daemon is ready"

// cutStart takes the power in one of the first flushes of a start, if there are as
// many before it is over.
func (c *cutter) cutStart(mark int) bool {
	c.t.Helper()
	dark := c.m.disk.CutAtFlush(1 + rand.IntN(6))
	for end := time.Now().Add(wide); ; {
		select {
		case <-dark:
			c.m.Cut()
			return true
		case <-time.After(50 * time.Millisecond):
		}
		if c.m.HasSince(mark, ready) && c.m.disk.Spare() {
			return false
		}
		if time.Now().After(end) {
			c.t.Fatalf("the machine was not ready in %v", wide)
		}
	}
}

// verify looks for every acknowledged write.
func (c *cutter) verify(round int) {
	c.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	poll(c.t, wide, "the list of ConfigMaps", func() error {
		return c.a.Do(http.MethodGet, "/api/v1/namespaces/default/configmaps", nil, &list)
	})
	have := map[string]bool{}
	for _, i := range list.Items {
		have[i.Metadata.Name] = true
	}
	for _, name := range c.acked {
		if !have[name] {
			c.n.lost.Add(1)
			c.t.Errorf("after cut %d: %s was acknowledged and is not there", round, name)
		}
	}
}

// load is writers that go on until the power is cut.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	acked  chan string // as many as can be acknowledged in a round
}

func startLoad(a *API, round int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, acked: make(chan string, 10000)}
	for w := range 4 {
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil && len(l.acked) < cap(l.acked)-4; i++ {
				name := fmt.Sprintf("cut-%d-%d-%d", round, w, i)
				if a.Do(http.MethodPost, "/api/v1/namespaces/default/configmaps", map[string]any{
					"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": map[string]any{"k": strings.Repeat("v", 1000)},
				}, nil) == nil {
					l.acked <- name
					continue
				}
				// Not acknowledged: nothing was promised. The power is gone, or will be.
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	return l
}

// wait returns when n writes were acknowledged; the writers go on.
func (l *load) wait(t *testing.T, n int) {
	t.Helper()
	poll(t, wide, "acknowledged writes", func() error {
		if len(l.acked) < n {
			return fmt.Errorf("there are %d of %d", len(l.acked), n)
		}
		return nil
	})
}

// stop ends the writers and tells what was acknowledged.
func (l *load) stop() (acked []string) {
	l.cancel()
	l.wg.Wait()
	close(l.acked)
	for name := range l.acked {
		acked = append(acked, name)
	}
	return acked
}
