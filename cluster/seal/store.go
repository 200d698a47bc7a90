package seal

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/apiserver/registry"
)

// prefix is where Secrets are stored.
const prefix = "/registry/secrets/"

// errKeyCame ends the watches of who could not read something before.
var errKeyCame = errors.New("this device was given a key of the cluster's Secrets")

// Wrap is the device's store with Secrets sealed in it. It must be the store that
// Keys has.
func (k *Keys) Wrap() registry.Store { return sealedStore{k.cfg.Store, k} }

type sealedStore struct {
	registry.Store
	keys *Keys
}

func (s sealedStore) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := s.Store.Range(ctx, req)
	if err != nil {
		return resp, err
	}
	for i, kv := range resp.Kvs {
		resp.Kvs[i] = s.keys.opened(ctx, kv)
	}
	return resp, nil
}

// Txn seals the Secrets that are put and holds the transaction to the record.
func (s sealedStore) Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	var seal *sealing
	out := req
	for i, op := range req.Success {
		p := op.GetRequestPut()
		if p == nil || !bytes.HasPrefix(p.Key, []byte(prefix)) {
			continue
		}
		if seal == nil {
			var err error
			if seal, err = s.keys.sealing(ctx); err != nil {
				return nil, err
			}
			out = &pb.TxnRequest{
				Compare: append([]*pb.Compare{modRevision(RecordKey, seal.revision)}, req.Compare...),
				Success: append([]*pb.RequestOp(nil), req.Success...), Failure: req.Failure,
			}
		}
		out.Success[i] = put(p.Key, seal.seal(p.Key, p.Value), p.Lease)
	}
	return s.Store.Txn(ctx, out)
}

func modRevision(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
	}
}

func put(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func (s sealedStore) Watch(ctx context.Context, req registry.WatchRequest) (registry.Watcher, error) {
	w, err := s.Store.Watch(ctx, req)
	if err != nil {
		return nil, err
	}
	return openingWatcher{w, s.keys}, nil
}

type openingWatcher struct {
	registry.Watcher
	keys *Keys
}

// Next opens what comes. An event is shared with other watchers: it is copied.
func (w openingWatcher) Next(ctx context.Context) (registry.Batch, error) {
	b, err := w.Watcher.Next(ctx)
	if err != nil {
		return b, err
	}
	var events []*mvccpb.Event
	for i, ev := range b.Events {
		if string(ev.Kv.Key) == RecordKey && w.keys.missedCame(ctx) {
			return registry.Batch{}, errKeyCame
		}
		kv, prev := w.keys.opened(ctx, ev.Kv), w.keys.opened(ctx, ev.PrevKv)
		if kv == ev.Kv && prev == ev.PrevKv {
			continue
		}
		if events == nil {
			events = append(events, b.Events...)
		}
		events[i] = &mvccpb.Event{Type: ev.Type, Kv: kv, PrevKv: prev}
	}
	if events != nil {
		b.Events = events
	}
	return b, nil
}

// opened is kv with its value opened, kv itself if it is no Secret or is not
// sealed, or cannot be opened: who decodes it says so.
func (k *Keys) opened(ctx context.Context, kv *mvccpb.KeyValue) *mvccpb.KeyValue {
	if kv == nil || len(kv.Value) == 0 || !bytes.HasPrefix(kv.Key, []byte(prefix)) {
		return kv
	}
	plain, ok := k.open(ctx, kv.Key, kv.Value)
	if !ok {
		return kv
	}
	return &mvccpb.KeyValue{
		Key: kv.Key, Value: plain, Lease: kv.Lease,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version,
	}
}
