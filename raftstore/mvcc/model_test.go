package mvcc_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
	"edged/raftstore/mvcc"
)

// twin is a deliberately dumb key space: a copy of everything for each revision.
type twin struct {
	at        map[int64]map[string]*mvccpb.KeyValue // state after each revision
	events    map[int64][]*mvccpb.Event
	revision  int64
	compacted int64
	leases    map[int64]bool
}

func newTwin() *twin {
	return &twin{at: map[int64]map[string]*mvccpb.KeyValue{1: {}}, events: map[int64][]*mvccpb.Event{}, revision: 1, leases: map[int64]bool{}}
}

// change runs f on a copy of the newest state and keeps it if f says so.
func (w *twin) change(f func(state map[string]*mvccpb.KeyValue) []*mvccpb.Event) {
	state := maps.Clone(w.at[w.revision])
	events := f(state)
	if len(events) == 0 {
		return
	}
	w.revision++
	w.at[w.revision], w.events[w.revision] = state, events
}

func (w *twin) put(state map[string]*mvccpb.KeyValue, r *pb.PutRequest) (*mvccpb.Event, error) {
	prev := state[string(r.Key)]
	if prev == nil && (r.IgnoreValue || r.IgnoreLease) {
		return nil, mvcc.ErrKeyNotFound
	}
	if r.Lease != 0 && !w.leases[r.Lease] {
		return nil, mvcc.ErrLeaseNotFound
	}
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, ModRevision: w.revision + 1, CreateRevision: w.revision + 1, Version: 1}
	if prev != nil {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
		if r.IgnoreValue {
			kv.Value = prev.Value
		}
		if r.IgnoreLease {
			kv.Lease = prev.Lease
		}
	}
	state[string(r.Key)] = kv
	return &mvccpb.Event{Kv: kv, PrevKv: prev}, nil
}

func inRange(k string, key, end []byte) bool {
	switch {
	case len(end) == 0:
		return k == string(key)
	case bytes.Equal(end, []byte{0}):
		return k >= string(key)
	}
	return k >= string(key) && k < string(end)
}

func (w *twin) delete(state map[string]*mvccpb.KeyValue, key, end []byte) (events []*mvccpb.Event) {
	for _, k := range slices.Sorted(maps.Keys(state)) {
		if inRange(k, key, end) {
			events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: w.revision + 1}, PrevKv: state[k]})
			delete(state, k)
		}
	}
	return events
}

func (w *twin) rangeOf(r *pb.RangeRequest) (kvs []*mvccpb.KeyValue, count int64, more bool, err error) {
	at := r.Revision
	switch {
	case at > w.revision:
		return nil, 0, false, mvcc.ErrFutureRev
	case at <= 0:
		at = w.revision
	case at < w.compacted:
		return nil, 0, false, mvcc.ErrCompacted
	}
	for _, k := range slices.Sorted(maps.Keys(w.at[at])) {
		kv := w.at[at][k]
		if !inRange(k, r.Key, r.RangeEnd) {
			continue
		}
		count++
		if r.MinModRevision != 0 && kv.ModRevision < r.MinModRevision || r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
			r.MinCreateRevision != 0 && kv.CreateRevision < r.MinCreateRevision || r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision {
			continue
		}
		kvs = append(kvs, proto.CloneOf(kv))
	}
	if r.CountOnly {
		return nil, count, false, nil
	}
	by := map[pb.RangeRequest_SortTarget]func(a, b *mvccpb.KeyValue) int{
		pb.RangeRequest_KEY:     func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) },
		pb.RangeRequest_VERSION: func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) },
		pb.RangeRequest_CREATE:  func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		pb.RangeRequest_MOD:     func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		pb.RangeRequest_VALUE:   func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) },
	}[r.SortTarget]
	switch r.SortOrder {
	case pb.RangeRequest_ASCEND:
		slices.SortStableFunc(kvs, by)
	case pb.RangeRequest_DESCEND:
		slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int { return by(b, a) })
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs, more = kvs[:r.Limit], true
	}
	if r.KeysOnly {
		for _, kv := range kvs {
			if kv.Value = nil; r.SortTarget != pb.RangeRequest_VALUE {
				kv.Lease = 0 // as in etcd 3.7, which has them from the index
			}
		}
	}
	return kvs, count, more, nil
}

// game drives both with the same random requests.
type game struct {
	*machine
	w    *twin
	rnd  *rand.Rand
	many int  // keys
	deep int  // revisions from the newest back to those asked for
	at0  bool // compacted at revision 0
}

func newGame(t *testing.T, seed uint64, many, deep int) *game {
	return &game{newMachine(t), newTwin(), rand.New(rand.NewPCG(seed, 1)), many, deep, false}
}

func (g *game) key() []byte { return fmt.Appendf(nil, "k%d", g.rnd.IntN(g.many)) }

func (g *game) keys() (key, end []byte) {
	key = g.key()
	switch g.rnd.IntN(4) {
	case 0:
		end = []byte{0}
	case 1:
		end = append(g.key(), 'x')
	}
	return key, end
}

// agree fails unless both refused for the same reason, or neither did.
func (g *game) agree(what string, got, want error) bool {
	g.t.Helper()
	if !errors.Is(got, want) || (got == nil) != (want == nil) {
		g.t.Fatalf("%s: %v, want %v", what, got, want)
	}
	return got == nil
}

func (g *game) step() {
	switch g.rnd.IntN(20) {
	case 0, 1, 2, 3, 4, 5:
		g.stepPut()
	case 6, 7:
		g.stepDelete()
	case 8, 9, 10:
		g.stepTxn()
	case 11:
		g.stepCompact()
	case 12:
		id := int64(1 + g.rnd.IntN(3))
		_, err := g.try(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 10}})
		if g.w.leases[id] {
			g.agree("grant", err, mvcc.ErrLeaseExists)
		} else if g.agree("grant", err, nil) {
			g.w.leases[id] = true
		}
	case 13:
		g.stepRevoke()
	case 14:
		if err := g.db.Commit(); err != nil {
			g.t.Fatal(err)
		}
	case 15:
		g.reopen()
	case 16:
		if g.rnd.IntN(8) == 0 {
			if err := g.db.Defragment(); err != nil {
				g.t.Fatal(err)
			}
		}
	case 17:
		g.stepForget()
	default:
		g.checkWatch()
	}
	for range 2 {
		g.checkRange()
	}
}

func (g *game) randomPut() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: fmt.Append(nil, g.rnd.IntN(20))}
	switch g.rnd.IntN(6) {
	case 0:
		r.Lease = int64(1 + g.rnd.IntN(3))
	case 1:
		r.Value, r.IgnoreValue = nil, true
	case 2:
		r.IgnoreLease = true
	}
	return r
}

func (g *game) stepPut() {
	r := g.randomPut()
	_, err := g.try(&pb.InternalRaftRequest{Put: r})
	var want error
	g.w.change(func(state map[string]*mvccpb.KeyValue) []*mvccpb.Event {
		var e *mvccpb.Event
		if e, want = g.w.put(state, r); want != nil {
			return nil
		}
		return []*mvccpb.Event{e}
	})
	g.agree("put", err, want)
}

func (g *game) stepDelete() {
	key, end := g.keys()
	resp, err := g.try(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: true}})
	n := 0
	g.w.change(func(state map[string]*mvccpb.KeyValue) []*mvccpb.Event {
		events := g.w.delete(state, key, end)
		n = len(events)
		return events
	})
	if g.agree("delete", err, nil) {
		if r := resp.(*pb.DeleteRangeResponse); int(r.Deleted) != n || len(r.PrevKvs) != n {
			g.t.Fatalf("deleted %v, want %d", r, n)
		}
	}
}

// stepTxn puts two different keys, or one and deletes another, if a key has the
// version that it is compared with.
func (g *game) stepTxn() {
	cmpKey, version := g.key(), int64(g.rnd.IntN(3))
	first, second := g.randomPut(), g.key()
	for bytes.Equal(first.Key, second) {
		second = g.key()
	}
	req := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: cmpKey, Target: pb.Compare_VERSION, Result: pb.Compare_LESS, TargetUnion: &pb.Compare_Version{Version: version}}},
		Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: first}},
			{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: first.Key}}},
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: second}}},
		},
	}
	resp, err := g.try(&pb.InternalRaftRequest{Txn: req})
	holds := g.w.at[g.w.revision][string(cmpKey)].GetVersion() < version
	var want error
	g.w.change(func(state map[string]*mvccpb.KeyValue) []*mvccpb.Event {
		if !holds {
			return nil
		}
		e, err := g.w.put(state, first)
		if err != nil {
			want = err
			return nil
		}
		return append([]*mvccpb.Event{e}, g.w.delete(state, second, nil)...)
	})
	if !g.agree("txn", err, want) {
		return
	}
	r := resp.(*pb.TxnResponse)
	if r.Succeeded != holds || r.Header.Revision != g.w.revision {
		g.t.Fatalf("txn %v at %d, want %v at %d", r.Succeeded, r.Header.Revision, holds, g.w.revision)
	}
	if holds && !proto.Equal(r.Responses[1].GetResponseRange().Kvs[0], g.w.at[g.w.revision][string(first.Key)]) {
		g.t.Fatalf("inside the transaction %v was read", r.Responses[1])
	}
}

func (g *game) stepCompact() {
	at := g.w.revision - int64(g.rnd.IntN(g.deep)) + 1
	_, err := g.try(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: at}})
	var want error
	switch {
	case at == 0 && g.w.compacted == 0 && !g.at0:
		g.at0 = true
	case at <= g.w.compacted:
		want = mvcc.ErrCompacted
	case at > g.w.revision:
		want = mvcc.ErrFutureRev
	default:
		g.w.compacted = at
	}
	g.agree("compact", err, want)
}

// stepForget carries out a part of what compactions have left to do, which nothing
// that can be asked shows.
func (g *game) stepForget() { g.db.CompactStep(1 + g.rnd.IntN(5)) }

func (g *game) stepRevoke() {
	id := int64(1 + g.rnd.IntN(3))
	_, err := g.try(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}})
	if !g.w.leases[id] {
		g.agree("revoke", err, mvcc.ErrLeaseNotFound)
		return
	}
	g.agree("revoke", err, nil)
	delete(g.w.leases, id)
	g.w.change(func(state map[string]*mvccpb.KeyValue) (events []*mvccpb.Event) {
		for _, k := range slices.Sorted(maps.Keys(state)) {
			if state[k].Lease == id {
				events = append(events, g.w.delete(state, []byte(k), nil)...)
			}
		}
		return events
	})
}

func (g *game) checkRange() {
	key, end := g.keys()
	r := &pb.RangeRequest{Key: key, RangeEnd: end, Limit: int64(g.rnd.IntN(4)), KeysOnly: g.rnd.IntN(4) == 0, CountOnly: g.rnd.IntN(6) == 0}
	if g.rnd.IntN(2) == 0 {
		r.Revision = max(g.w.revision-int64(g.rnd.IntN(g.deep+4))+2, 0)
	}
	if g.rnd.IntN(3) == 0 {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(1+g.rnd.IntN(2)), pb.RangeRequest_SortTarget(g.rnd.IntN(5))
	}
	if g.rnd.IntN(4) == 0 {
		r.MinModRevision, r.MaxCreateRevision = int64(g.rnd.IntN(int(g.w.revision))), int64(g.rnd.IntN(int(g.w.revision)))
	}
	got, err := g.db.Range(auth.Trusted, r)
	kvs, count, more, want := g.w.rangeOf(r)
	if !g.agree(fmt.Sprint("range ", r), err, want) {
		return
	}
	same := slices.EqualFunc(got.Kvs, kvs, func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) })
	if !same || got.Count != count || got.More != more || got.Header.Revision != g.w.revision {
		g.t.Fatalf("range %v: %v\nwant %v, count %d, more %v", r, got, kvs, count, more)
	}
}

// checkWatch reads history from a random revision on.
func (g *game) checkWatch() {
	key, end := g.keys()
	from := max(g.w.revision-int64(g.rnd.IntN(2*g.deep))+1, 1)
	w := g.db.Watch(key, end, from, true)
	var got strings.Builder
	for {
		b, changed, err := w.Poll()
		if from < g.w.compacted {
			g.agree("watch", err, mvcc.ErrCompacted)
			return
		}
		g.agree("watch", err, nil)
		if changed != nil {
			break
		}
		for _, e := range b.Events {
			fmt.Fprintln(&got, e.Type, string(e.Kv.Key), string(e.Kv.Value), e.Kv.ModRevision, e.Kv.Version)
		}
	}
	var want strings.Builder
	for rev := from; rev <= g.w.revision; rev++ {
		for _, e := range g.w.events[rev] {
			if inRange(string(e.Kv.Key), key, end) {
				fmt.Fprintln(&want, e.Type, string(e.Kv.Key), string(e.Kv.Value), e.Kv.ModRevision, e.Kv.Version)
			}
		}
	}
	if got.String() != want.String() {
		g.t.Fatalf("watch of %q..%q from %d:\n%swant:\n%s", key, end, from, got.String(), want.String())
	}
}

// TestAgainstTwin compares random histories with the twin: every read, every
// refusal, every event, across commits, restarts and compactions.
func TestAgainstTwin(t *testing.T) {
	games, steps := 40, 300
	if testing.Short() {
		games = 5
	}
	for seed := range uint64(games) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := newGame(t, seed, 8, 10)
			for range steps {
				g.step()
			}
		})
	}
}

// TestLongHistoriesAgainstTwin is of keys that were written hundreds of times, and of
// reads far back.
func TestLongHistoriesAgainstTwin(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := newGame(t, seed, 2, 400)
			for range 500 {
				for range g.rnd.IntN(6) {
					g.stepPut()
				}
				switch g.rnd.IntN(40) {
				case 0:
					g.stepDelete()
				case 1:
					g.stepCompact()
				case 2:
					g.reopen()
				case 3:
					g.stepForget()
				case 4:
					g.checkWatch()
				case 5:
					g.stepTxn()
				}
				g.checkRange()
			}
		})
	}
}
