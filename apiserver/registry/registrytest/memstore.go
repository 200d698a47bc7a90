package registrytest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sort"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/apiserver/registry"
)

// MemStore is a registry.Store in memory with the store's revisions, so that
// tests of the registry can hold it back, compact it and break its watches.
type MemStore struct {
	mu        sync.Mutex
	revision  int64
	compacted int64
	leases    int64
	history   []*mvccpb.Event // in revision order, with PrevKv
	current   map[string]*mvccpb.KeyValue
	changed   chan struct{} // closed and replaced at every revision and when watches break
	broken    int           // how often watches were broken
}

// NewMemStore returns an empty store at revision 1, as etcd's.
func NewMemStore() *MemStore {
	return &MemStore{revision: 1, current: map[string]*mvccpb.KeyValue{}, changed: make(chan struct{})}
}

func (s *MemStore) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: s.revision} }

// Range implements registry.Store.
func (s *MemStore) Range(_ context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := req.Revision
	if at == 0 {
		at = s.revision
	}
	if at < s.compacted {
		return nil, registry.ErrCompacted
	}
	if at > s.revision {
		return nil, errors.New("required revision is a future revision")
	}
	state := s.current
	if at < s.revision {
		state = map[string]*mvccpb.KeyValue{}
		for _, ev := range s.history {
			if ev.Kv.ModRevision > at {
				break
			}
			if ev.Type == mvccpb.Event_DELETE {
				delete(state, string(ev.Kv.Key))
			} else {
				state[string(ev.Kv.Key)] = ev.Kv
			}
		}
	}
	var keys []string
	for k := range state {
		if inRange([]byte(k), req.Key, req.RangeEnd) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	resp := &pb.RangeResponse{Header: s.header(), Count: int64(len(keys))}
	for _, k := range keys {
		if req.Limit > 0 && int64(len(resp.Kvs)) == req.Limit {
			resp.More = true
			break
		}
		resp.Kvs = append(resp.Kvs, state[k])
	}
	return resp, nil
}

// Txn implements registry.Store.
func (s *MemStore) Txn(_ context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range req.Compare {
		var have int64
		if kv := s.current[string(c.Key)]; kv != nil {
			have = kv.ModRevision
		}
		if have != c.GetModRevision() {
			return &pb.TxnResponse{Header: s.header()}, nil
		}
	}
	next := s.revision + 1
	wrote := false
	for _, op := range req.Success {
		if p := op.GetRequestPut(); p != nil {
			s.put(p, next)
			wrote = true
		} else if d := op.GetRequestDeleteRange(); d != nil && s.current[string(d.Key)] != nil {
			s.delete(string(d.Key), next)
			wrote = true
		}
	}
	if wrote {
		s.revision = next
		s.signal()
	}
	return &pb.TxnResponse{Header: s.header(), Succeeded: true}, nil
}

func (s *MemStore) put(p *pb.PutRequest, revision int64) {
	old := s.current[string(p.Key)]
	kv := &mvccpb.KeyValue{Key: p.Key, Value: slices.Clone(p.Value), ModRevision: revision, CreateRevision: revision, Version: 1, Lease: p.Lease}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	s.current[string(p.Key)] = kv
	s.history = append(s.history, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv, PrevKv: old})
}

func (s *MemStore) delete(key string, revision int64) {
	old := s.current[key]
	delete(s.current, key)
	kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}
	s.history = append(s.history, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv, PrevKv: old})
}

func (s *MemStore) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ReadIndex implements registry.Store.
func (s *MemStore) ReadIndex(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision, nil
}

// LeaseGrant implements registry.Store. Leases never end here.
func (s *MemStore) LeaseGrant(_ context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases++
	return &pb.LeaseGrantResponse{Header: s.header(), ID: s.leases, TTL: req.TTL}, nil
}

// Compact forgets the states before revision.
func (s *MemStore) Compact(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = revision
}

// BreakWatches ends every watch with an error, as a snapshot install does.
func (s *MemStore) BreakWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken++
	s.signal()
}

// Watch implements registry.Store.
func (s *MemStore) Watch(_ context.Context, req registry.WatchRequest) (registry.Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memWatcher{s: s, req: req, next: req.Start, broken: s.broken}, nil
}

type memWatcher struct {
	s      *MemStore
	req    registry.WatchRequest
	next   int64
	broken int
}

func (w *memWatcher) Next(ctx context.Context) (registry.Batch, error) {
	for {
		b, wait, err := w.poll()
		if err != nil || b.Revision > 0 {
			return b, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return registry.Batch{}, ctx.Err()
		}
	}
}

func (w *memWatcher) poll() (registry.Batch, <-chan struct{}, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.broken != w.broken {
		return registry.Batch{}, nil, errors.New("watch broken by the test")
	}
	if w.next <= w.s.compacted && w.next < w.s.revision {
		return registry.Batch{}, nil, registry.ErrCompacted
	}
	i := sort.Search(len(w.s.history), func(i int) bool { return w.s.history[i].Kv.ModRevision >= w.next })
	var b registry.Batch
	for ; i < len(w.s.history); i++ {
		ev := w.s.history[i]
		if !inRange(ev.Kv.Key, w.req.Key, w.req.End) {
			continue
		}
		if b.Revision != 0 && ev.Kv.ModRevision != b.Revision {
			break
		}
		b.Revision = ev.Kv.ModRevision
		if !w.req.PrevKV {
			ev = &mvccpb.Event{Type: ev.Type, Kv: ev.Kv}
		}
		b.Events = append(b.Events, ev)
	}
	if b.Revision > 0 {
		w.next = b.Revision + 1
	}
	return b, w.s.changed, nil
}

func (w *memWatcher) Close() {}

func inRange(key, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(key, from) >= 0
	}
	return bytes.Compare(key, from) >= 0 && bytes.Compare(key, end) < 0
}
