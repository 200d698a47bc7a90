package mvcc

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
)

// Apply applies one entry of the log and returns the response to its proposer.
// An error is the request's, not the store's: the entry counts as applied.
func (db *DB) Apply(a Applied, req *pb.InternalRaftRequest) (proto.Message, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.applied = a
	by := caller(req.Header)
	if err := db.refused(req); err != nil {
		return nil, err
	}
	switch {
	case req.Put != nil:
		return respond(db.applyPut(by, req.Put))
	case req.DeleteRange != nil:
		return respond(db.applyDelete(by, req.DeleteRange))
	case req.Txn != nil:
		if err := db.permitTxn(by, req.Txn); err != nil {
			return nil, err
		}
		db.counts.Txns++
		return respond(db.txn(req.Txn))
	case req.Compaction != nil:
		return respond(db.compact(req.Compaction))
	case req.LeaseGrant != nil:
		return respond(db.grant(req.LeaseGrant))
	case req.LeaseRevoke != nil:
		if err := db.permitLease(by, req.LeaseRevoke.ID); err != nil {
			return nil, err
		}
		return respond(db.revoke(req.LeaseRevoke))
	case req.LeaseCheckpoint != nil:
		return respond(db.checkpoint(req.LeaseCheckpoint))
	case req.Alarm != nil:
		return respond(db.alarm(req.Alarm))
	case req.ClusterVersionSet != nil:
		db.setRow(ClusterBucket, "clusterVersion", []byte(req.ClusterVersionSet.Ver))
		return nil, nil
	case req.DowngradeInfoSet != nil:
		return nil, db.setDowngrade(req.DowngradeInfoSet)
	}
	return db.applyAuth(a, by, req)
}

func (db *DB) applyPut(by auth.Caller, req *pb.PutRequest) (*pb.PutResponse, error) {
	if err := db.permitPut(by, req); err != nil {
		return nil, err
	}
	t := db.begin()
	resp, err := t.put(req)
	t.end()
	return resp, err
}

func (db *DB) applyDelete(by auth.Caller, req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := db.permitDelete(by, req); err != nil {
		return nil, err
	}
	t := db.begin()
	resp, err := t.deleteRange(req)
	t.end()
	return resp, err
}

// respond keeps a typed nil out of an interface.
func respond[T proto.Message](resp T, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// txn is a transaction in progress: its changes share one main revision. Reads
// inside see the changes before them.
type txn struct {
	db     *DB
	view   view
	main   int64
	sub    int64
	events []*mvccpb.Event
	bare   bool // an event lacks what was before it
}

// begin starts a transaction; mu is held until end.
func (db *DB) begin() *txn { return &txn{db: db, view: db.view(), main: db.revision + 1} }

// current is the revision that responses inside the transaction show.
func (t *txn) current() int64 {
	if t.sub > 0 {
		return t.main
	}
	return t.main - 1
}

// end publishes the transaction if it changed anything.
func (t *txn) end() {
	t.view.close()
	if t.sub == 0 {
		return
	}
	t.db.revision = t.main
	t.db.recent.add(t.main, t.events, t.bare)
	t.db.signal()
}

func (t *txn) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: t.current()} }

// record stores one change.
func (t *txn) record(typ mvccpb.Event_EventType, kv, prev *mvccpb.KeyValue) {
	rev := Rev{t.main, t.sub}
	t.sub++
	stored := kv
	if typ == mvccpb.Event_DELETE {
		stored = &mvccpb.KeyValue{Key: kv.Key}
	}
	data := mustMarshal(stored)
	t.db.pending = append(t.db.pending, record{rev, typ == mvccpb.Event_DELETE, data})
	t.view.pending = t.db.pending // the transaction sees its own changes
	t.db.bytes += len(data)
	t.events = append(t.events, &mvccpb.Event{Type: typ, Kv: kv, PrevKv: prev})
}

// previous is the key's state before the change at hand, or nil.
func (t *txn) previous(key []byte) (*mvccpb.KeyValue, error) {
	e, ok := t.db.index.get(key)
	if !ok {
		return nil, nil
	}
	v, ok := e.at(t.main)
	if !ok {
		return nil, nil
	}
	return t.view.read(v.rev)
}

// wanted reports whether watchers want to know what was before this change.
func (t *txn) wanted() bool { return t.main <= t.db.wanted.Load() }

// checkPut tells whether put can succeed, without changing anything.
func (t *txn) checkPut(req *pb.PutRequest) error {
	if req.Lease != 0 && t.db.leases[req.Lease] == nil {
		return ErrLeaseNotFound
	}
	if req.IgnoreValue || req.IgnoreLease {
		e, ok := t.db.index.get(req.Key)
		if !ok {
			return ErrKeyNotFound
		}
		if _, ok := e.at(t.main); !ok {
			return ErrKeyNotFound
		}
	}
	return nil
}

func (t *txn) put(req *pb.PutRequest) (*pb.PutResponse, error) {
	if err := t.checkPut(req); err != nil {
		return nil, err
	}
	kv := &mvccpb.KeyValue{Key: req.Key, Value: req.Value, Lease: req.Lease, ModRevision: t.main, CreateRevision: t.main, Version: 1}
	place, e := t.db.index.find(req.Key)
	var v version
	exists := false
	if e != nil {
		v, exists = e.at(t.main)
	}
	var prev *mvccpb.KeyValue
	if exists {
		kv.CreateRevision, kv.Version = v.created, v.n+1
		if req.IgnoreValue || req.IgnoreLease || req.PrevKv || t.wanted() {
			var err error
			if prev, err = t.view.read(v.rev); err != nil {
				return nil, err
			}
		}
		if req.IgnoreValue {
			kv.Value = prev.Value
		}
		if req.IgnoreLease {
			kv.Lease = prev.Lease
		}
		t.bare = t.bare || prev == nil
	}
	t.db.counts.Puts++
	if !exists {
		t.db.counts.Keys++
	}
	t.db.stats.putBytes.Add(int64(len(kv.Key) + len(kv.Value)))
	t.db.index.put(place, e, req.Key, Rev{t.main, t.sub})
	t.record(mvccpb.Event_PUT, kv, prev)
	t.db.attach(kv.Key, kv.Lease)
	resp := &pb.PutResponse{Header: t.header()}
	if req.PrevKv {
		resp.PrevKv = prev
	}
	return resp, nil
}

func (t *txn) deleteRange(req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	resp := &pb.DeleteRangeResponse{}
	t.db.counts.Deletes++
	var found [][]byte
	t.db.index.ascend(req.Key, req.RangeEnd, func(e *entry) bool {
		if _, ok := e.at(t.main); ok {
			found = append(found, bytes.Clone(e.key))
		}
		return true
	})
	for _, key := range found {
		prev, err := t.previous(key)
		if err != nil {
			return nil, err
		}
		t.db.counts.Keys--
		t.db.index.end(key, Rev{t.main, t.sub})
		t.record(mvccpb.Event_DELETE, &mvccpb.KeyValue{Key: key, ModRevision: t.main}, prev)
		t.db.attach(key, 0)
		resp.Deleted++
		if req.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, prev)
		}
	}
	resp.Header = t.header()
	return resp, nil
}

// txn applies a transaction: the comparisons choose a path against the state
// before it, every operation of the path is checked, and only then does the
// first one run, so that a refused transaction leaves nothing behind.
func (db *DB) txn(req *pb.TxnRequest) (*pb.TxnResponse, error) {
	t := db.begin()
	defer t.end()
	path, err := t.choose(req)
	if err != nil {
		return nil, err
	}
	if err := t.check(path); err != nil {
		return nil, err
	}
	resp, err := t.run(path)
	if err != nil {
		return nil, err
	}
	resp.Header = t.header()
	return resp, nil
}

// ReadTxn carries out a transaction that writes nothing, without the log.
func (db *DB) ReadTxn(by auth.Caller, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if err := db.permitTxn(by, req); err != nil {
		return nil, err
	}
	return db.txn(req)
}

// chosen is a transaction with its comparisons decided.
type chosen struct {
	succeeded bool
	ops       []*pb.RequestOp
	nested    []*chosen // for ops that are transactions, in order
}

func (t *txn) choose(req *pb.TxnRequest) (*chosen, error) {
	c := &chosen{succeeded: true}
	for _, cmp := range req.Compare {
		ok, err := t.compare(cmp)
		if err != nil {
			return nil, err
		}
		c.succeeded = c.succeeded && ok
	}
	c.ops = req.Failure
	if c.succeeded {
		c.ops = req.Success
	}
	for _, op := range c.ops {
		if inner := op.GetRequestTxn(); inner != nil {
			n, err := t.choose(inner)
			if err != nil {
				return nil, err
			}
			c.nested = append(c.nested, n)
		}
	}
	return c, nil
}

func (t *txn) check(c *chosen) error {
	nested := c.nested
	for _, op := range c.ops {
		var err error
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			err = t.checkPut(r.RequestPut)
		case *pb.RequestOp_RequestRange:
			if at := r.RequestRange.Revision; at > t.main-1 {
				err = ErrFutureRev
			} else if at != 0 && at < t.db.neverCompacted(t.db.compacted) {
				err = ErrCompacted
			}
		case *pb.RequestOp_RequestTxn:
			err = t.check(nested[0])
			nested = nested[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) run(c *chosen) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Succeeded: c.succeeded}
	nested := c.nested
	for _, op := range c.ops {
		out := &pb.ResponseOp{}
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			rr, err := t.view.rangeAt(r.RequestRange, t.current())
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
		case *pb.RequestOp_RequestPut:
			pr, err := t.put(r.RequestPut)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: pr}
		case *pb.RequestOp_RequestDeleteRange:
			dr, err := t.deleteRange(r.RequestDeleteRange)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dr}
		case *pb.RequestOp_RequestTxn:
			tr, err := t.run(nested[0])
			if err != nil {
				return nil, err
			}
			nested = nested[1:]
			tr.Header = &pb.ResponseHeader{} // etcd fills in that of the whole alone
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: tr}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, nil
}

// compare decides one comparison for every key of its range; a range without
// keys compares as if it held one that does not exist, except by value.
func (t *txn) compare(c *pb.Compare) (bool, error) {
	result, found := true, false
	var err error
	t.db.index.ascend(c.Key, c.RangeEnd, func(e *entry) bool {
		v, ok := e.at(t.main)
		if !ok {
			return true
		}
		found = true
		var kv *mvccpb.KeyValue
		if kv, err = t.view.read(v.rev); err != nil {
			return false
		}
		result = holds(c, kv)
		return result
	})
	if err != nil {
		return false, err
	}
	if !found {
		if c.Target == pb.Compare_VALUE {
			return false, nil
		}
		return holds(c, &mvccpb.KeyValue{}), nil
	}
	return result, nil
}

func holds(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	var sign int
	order := func(have, want int64) int {
		switch {
		case have < want:
			return -1
		case have > want:
			return 1
		}
		return 0
	}
	switch c.Target {
	case pb.Compare_VALUE:
		sign = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_VERSION:
		sign = order(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		sign = order(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		sign = order(kv.ModRevision, c.GetModRevision())
	case pb.Compare_LEASE:
		sign = order(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return sign == 0
	case pb.Compare_NOT_EQUAL:
		return sign != 0
	case pb.Compare_GREATER:
		return sign > 0
	case pb.Compare_LESS:
		return sign < 0
	}
	return true // a result that etcd does not know holds there
}
