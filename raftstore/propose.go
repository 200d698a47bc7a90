package raftstore

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// propose makes req an entry of the log and returns the response that applying
// it gave.
func propose[T interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}](ctx context.Context, s *Store, req *pb.InternalRaftRequest) (T, error) {
	var none T
	resp, err := s.propose(ctx, req)
	if err != nil {
		return none, err
	}
	out, ok := resp.(T)
	if !ok {
		return none, fmt.Errorf("apply answered %T, want %T", resp, none)
	}
	if h := out.GetHeader(); h != nil {
		s.header(h)
	}
	return out, nil
}

func (s *Store) propose(ctx context.Context, req *pb.InternalRaftRequest) (proto.Message, error) {
	by := callerOf(ctx)
	req.Header = &pb.RequestHeader{ID: s.nextID.Add(1), Username: by.User, AuthRevision: by.Revision}
	if err := s.checkQuota(ctx, req); err != nil {
		return nil, err
	}
	data, err := proto.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode a proposal: %w", err)
	}
	if len(data) > s.cfg.MaxRequestBytes {
		return nil, ErrRequestTooLarge
	}
	resp, err := s.node.propose(ctx, req.Header.ID, proposal{data: data})
	if err != nil && lost(err) {
		s.counters.failed.Add(1)
	}
	return resp, err
}

// lost reports whether err says that a proposal has no outcome.
func lost(err error) bool {
	for _, e := range []error{ErrTimeout, ErrTimeoutLeaderLost, ErrStopped, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func checkRange(req *pb.RangeRequest) error {
	if len(req.Key) == 0 {
		return ErrEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(req.SortOrder)]; !ok {
		return ErrInvalidSort
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(req.SortTarget)]; !ok {
		return ErrInvalidSort
	}
	return nil
}

func checkPut(req *pb.PutRequest) error {
	switch {
	case len(req.Key) == 0:
		return ErrEmptyKey
	case req.IgnoreValue && len(req.Value) != 0:
		return ErrValueProvided
	case req.IgnoreLease && req.Lease != 0:
		return ErrLeaseProvided
	}
	return nil
}

// checkTxn refuses what etcd refuses before it is proposed. Operations inside
// nested transactions count with those around them.
func checkTxn(req *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(req, maxOps); err != nil {
		return err
	}
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		if _, err := checkOverlap(ops); err != nil {
			return err
		}
	}
	return nil
}

func checkTxnOps(req *pb.TxnRequest, maxOps int) error {
	n := max(len(req.Compare), len(req.Success), len(req.Failure))
	if n > maxOps {
		return ErrTooManyOps
	}
	for _, c := range req.Compare {
		if len(c.Key) == 0 {
			return ErrEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			if err := checkOp(op, maxOps-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(r.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		if len(r.RequestDeleteRange.Key) == 0 {
			return ErrEmptyKey
		}
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(r.RequestTxn, maxOps)
	default:
		return ErrKeyNotFound
	}
	return nil
}

// written is what a list of operations may write.
type written struct {
	puts    map[string]bool
	deletes []*pb.DeleteRangeRequest
}

func (w *written) deleted(key string) bool {
	for _, d := range w.deletes {
		end := string(d.RangeEnd)
		switch {
		case end == "":
			if key == string(d.Key) {
				return true
			}
		case key >= string(d.Key) && key < end:
			return true
		}
	}
	return false
}

// checkOverlap refuses a list that puts a key twice, or puts and deletes it:
// all changes of a transaction have one revision. As in etcd, what deletes all keys from
// one on may stand beside puts: "all of this and nothing else" is said so. They happen in
// their order. The two paths of a nested
// transaction exclude each other and may both write a key.
func checkOverlap(ops []*pb.RequestOp) (written, error) {
	w := written{puts: map[string]bool{}}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			w.deletes = append(w.deletes, d)
		}
	}
	for _, op := range ops {
		inner := op.GetRequestTxn()
		if inner == nil {
			continue
		}
		both := map[string]bool{}
		var deletes []*pb.DeleteRangeRequest // what stands before them is not held against them
		for _, path := range [][]*pb.RequestOp{inner.Success, inner.Failure} {
			in, err := checkOverlap(path)
			if err != nil {
				return w, err
			}
			for k := range in.puts {
				if w.puts[k] || w.deleted(k) {
					return w, ErrDuplicateKey
				}
				both[k] = true
			}
			deletes = append(deletes, in.deletes...)
		}
		for k := range both {
			w.puts[k] = true
		}
		w.deletes = append(w.deletes, deletes...)
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		if k := string(p.Key); w.puts[k] || w.deleted(k) {
			return w, ErrDuplicateKey
		} else {
			w.puts[k] = true
		}
	}
	return w, nil
}
