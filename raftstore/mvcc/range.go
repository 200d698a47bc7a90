package mvcc

import (
	"bytes"
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Range reads keys as they are, or as they were at req.Revision. The meaning of
// [Key, RangeEnd): no RangeEnd is the key alone, "\0" is all keys from Key on.
func (db *DB) Range(req *pb.RangeRequest) (*pb.RangeResponse, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.rangeAt(req, db.revision)
}

// rangeAt is Range with mu held; current is the newest revision visible.
func (db *DB) rangeAt(req *pb.RangeRequest, current int64) (*pb.RangeResponse, error) {
	at := req.Revision
	switch {
	case at > current:
		return nil, ErrFutureRev
	case at <= 0:
		at = current
	case at < db.compacted:
		return nil, ErrCompacted
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: current}}
	plain := req.SortOrder == pb.RangeRequest_NONE && req.MinModRevision == 0 && req.MaxModRevision == 0 &&
		req.MinCreateRevision == 0 && req.MaxCreateRevision == 0
	limit := req.Limit
	if req.SortOrder == pb.RangeRequest_ASCEND && req.SortTarget == pb.RangeRequest_KEY {
		plain = req.MinModRevision == 0 && req.MaxModRevision == 0 && req.MinCreateRevision == 0 && req.MaxCreateRevision == 0
	}
	var err error
	db.index.ascend(req.Key, req.RangeEnd, func(e *entry) bool {
		v, ok := e.at(at)
		if !ok {
			return true
		}
		resp.Count++
		if req.CountOnly || plain && limit > 0 && int64(len(resp.Kvs)) >= limit {
			resp.More = resp.More || !req.CountOnly
			return true
		}
		var kv *mvccpb.KeyValue
		if kv, err = db.read(v.rev); err != nil {
			return false
		}
		resp.Kvs = append(resp.Kvs, kv)
		return true
	})
	if err != nil {
		return nil, err
	}
	if !plain {
		filterAndSort(req, resp)
		if limit > 0 && int64(len(resp.Kvs)) > limit {
			resp.Kvs, resp.More = resp.Kvs[:limit], true
		}
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
	resp.Kvs = slices.DeleteFunc(resp.Kvs, func(kv *mvccpb.KeyValue) bool {
		return outside(kv.ModRevision, req.MinModRevision, req.MaxModRevision) ||
			outside(kv.CreateRevision, req.MinCreateRevision, req.MaxCreateRevision)
	})
	order := req.SortOrder
	if order == pb.RangeRequest_NONE {
		if req.SortTarget == pb.RangeRequest_KEY {
			return
		}
		order = pb.RangeRequest_ASCEND // etcd: a target without an order sorts ascending
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

func marshal(deleted bool, kv *mvccpb.KeyValue) []byte {
	op := byte(0)
	if deleted {
		op = 1
	}
	data, err := proto.MarshalOptions{}.MarshalAppend([]byte{op}, kv)
	if err != nil {
		// A KeyValue of bytes and numbers always encodes.
		panic(err)
	}
	return data
}
