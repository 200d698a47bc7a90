package mvcc

import (
	"bytes"
	"cmp"
	"math"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore/auth"
)

// Range reads keys as they are, or as they were at req.Revision. The meaning of
// [Key, RangeEnd): no RangeEnd is the key alone, "\0" is all keys from Key on.
func (db *DB) Range(by auth.Caller, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	db.stats.ranges.Add(1)
	db.mu.RLock()
	locked := true
	unlock := func() {
		if locked {
			locked = false
			db.mu.RUnlock()
		}
	}
	defer unlock()
	if err := db.auth.Read(by, req.Key, req.RangeEnd); err != nil {
		return nil, err
	}
	v := db.view()
	defer v.close()
	resp, revs, err := v.find(req, db.revision)
	if err != nil {
		return nil, err
	}
	if len(revs) > longRange {
		// Writers need not wait while many values are read.
		if err := v.pin(); err != nil {
			return nil, err
		}
		unlock()
	}
	return v.fetch(req, resp, revs)
}

// longRange is how many values are read while writers wait.
const longRange = 64

// filtered reports whether more than key, end and revision decide which keys a
// request gets.
func filtered(req *pb.RangeRequest) bool {
	return req.MinModRevision != 0 || req.MaxModRevision != 0 || req.MinCreateRevision != 0 || req.MaxCreateRevision != 0
}

// fetchLimit is how many keys have to be read. As in etcd, a sort target without
// an order sorts the first keys only, and one more: etcd reads that to see whether
// there are more, and sorts before it cuts.
func fetchLimit(req *pb.RangeRequest) int64 {
	switch {
	case req.Limit <= 0 || req.Limit == math.MaxInt64 || filtered(req):
		return math.MaxInt64
	case req.SortTarget == pb.RangeRequest_KEY && req.SortOrder != pb.RangeRequest_DESCEND:
		return req.Limit
	case req.SortOrder == pb.RangeRequest_NONE:
		return req.Limit + 1
	}
	return math.MaxInt64
}

// rangeAt is Range with mu held; current is the newest revision visible.
func (v *view) rangeAt(req *pb.RangeRequest, current int64) (*pb.RangeResponse, error) {
	resp, revs, err := v.find(req, current)
	if err != nil {
		return nil, err
	}
	return v.fetch(req, resp, revs)
}

// indexed reports whether the index alone answers a request. As in etcd 3.7, what comes
// of it does not tell the keys' leases: those are with the values.
func indexed(req *pb.RangeRequest) bool {
	return req.KeysOnly && req.SortTarget != pb.RangeRequest_VALUE
}

// find looks up in the index which rows a request wants, and answers from there what it
// can; mu is held.
func (v *view) find(req *pb.RangeRequest, current int64) (resp *pb.RangeResponse, revs []Rev, err error) {
	at := req.Revision
	switch {
	case at > current:
		return nil, nil, ErrFutureRev
	case at <= 0:
		at = current
	case at < v.db.compacted:
		return nil, nil, ErrCompacted
	}
	resp = &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: current}}
	limit := fetchLimit(req)
	v.db.index.ascend(req.Key, req.RangeEnd, func(e *entry) bool {
		ver, ok := e.at(at)
		if !ok {
			return true
		}
		resp.Count++
		switch {
		case req.CountOnly:
		case int64(len(revs)+len(resp.Kvs)) >= limit:
			resp.More = true
		case indexed(req):
			resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: bytes.Clone(e.key), ModRevision: ver.rev.Main, CreateRevision: ver.created, Version: ver.n})
		default:
			revs = append(revs, ver.rev)
		}
		return true
	})
	return resp, revs, nil
}

// fetch reads the rows and brings them into the form that was asked for; mu is
// held, or the view is pinned.
func (v *view) fetch(req *pb.RangeRequest, resp *pb.RangeResponse, revs []Rev) (*pb.RangeResponse, error) {
	if len(revs) > 0 {
		resp.Kvs = make([]*mvccpb.KeyValue, len(revs))
	}
	for i, rev := range revs {
		var err error
		if resp.Kvs[i], err = v.read(rev); err != nil {
			return nil, err
		}
	}
	filterAndSort(req, resp)
	if req.Limit > 0 && int64(len(resp.Kvs)) > req.Limit {
		resp.Kvs, resp.More = resp.Kvs[:req.Limit], true
	}
	if req.KeysOnly {
		for _, kv := range resp.Kvs {
			kv.Value = nil
		}
	}
	return resp, nil
}

func filterAndSort(req *pb.RangeRequest, resp *pb.RangeResponse) {
	outside := func(v, lo, hi int64) bool { return lo != 0 && v < lo || hi != 0 && v > hi }
	if filtered(req) {
		resp.Kvs = slices.DeleteFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool {
			return outside(kv.ModRevision, req.MinModRevision, req.MaxModRevision) ||
				outside(kv.CreateRevision, req.MinCreateRevision, req.MaxCreateRevision)
		})
	}
	order := req.SortOrder
	if order == pb.RangeRequest_NONE {
		if req.SortTarget == pb.RangeRequest_KEY {
			return
		}
		order = pb.RangeRequest_ASCEND // etcd: a target without an order sorts ascending
	}
	if order == pb.RangeRequest_ASCEND && req.SortTarget == pb.RangeRequest_KEY {
		return // as they were read
	}
	compare := func(a, b *mvccpb.KeyValue) int {
		switch req.SortTarget {
		case pb.RangeRequest_VERSION:
			return cmp.Compare(a.Version, b.Version)
		case pb.RangeRequest_CREATE:
			return cmp.Compare(a.CreateRevision, b.CreateRevision)
		case pb.RangeRequest_MOD:
			return cmp.Compare(a.ModRevision, b.ModRevision)
		case pb.RangeRequest_VALUE:
			return bytes.Compare(a.Value, b.Value)
		default:
			return bytes.Compare(a.Key, b.Key)
		}
	}
	slices.SortStableFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int {
		if order == pb.RangeRequest_DESCEND {
			return compare(b, a)
		}
		return compare(a, b)
	})
}
