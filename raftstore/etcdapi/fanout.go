package etcdapi

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/mvcc"
)

// Field numbers of WatchResponse.
const (
	watchHeaderField = 1
	watchIDField     = 2
	watchEventsField = 11
)

// told is what the watches of a stream that want the same get of the same stretch
// of history: read once, and encoded once.
type told struct {
	by     *watch       // who read it; nil for nobody
	before mvcc.Watcher // where that stood
	header *pb.ResponseHeader
	events []*mvccpb.Event
	// head and body are header and events as they are sent, nil until somebody needs
	// them.
	head, body []byte
}

// serves reports whether x gets what was told before, and moves x on if so.
func (t *told) serves(x *watch) bool {
	return t.by != nil && x.prevKV == t.by.prevKV && x.noPut == t.by.noPut && x.noDelete == t.by.noDelete &&
		x.from.Follow(&t.before, t.by.from)
}

// encode makes head and body.
func (t *told) encode() (err error) {
	if t.body != nil {
		return nil
	}
	size := 0
	for _, e := range t.events {
		size += proto.Size(e) + 8
	}
	if t.head, err = appendField(nil, watchHeaderField, t.header); err != nil {
		return err
	}
	b := make([]byte, 0, size)
	for _, e := range t.events {
		if b, err = appendField(b, watchEventsField, e); err != nil {
			return err
		}
	}
	t.body = b
	return nil
}

// appendField appends a field that is a message.
func appendField(b []byte, n protowire.Number, m proto.Message) ([]byte, error) {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(proto.Size(m)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
}

// sharedResponse is a WatchResponse whose events others get too.
type sharedResponse struct {
	id   int64
	told *told
}

// response is what s is on the wire.
func (s *sharedResponse) response() *pb.WatchResponse {
	return &pb.WatchResponse{Header: s.told.header, WatchId: s.id, Events: s.told.events}
}

// AppendTo is part of rpc.Part.
func (s *sharedResponse) AppendTo(b []byte) ([]byte, error) {
	if err := s.told.encode(); err != nil {
		return b, err
	}
	return append(s.begin(b), s.told.body...), nil
}

// begin appends what comes before the events.
func (s *sharedResponse) begin(b []byte) []byte {
	b = append(b, s.told.head...)
	if s.id != 0 {
		b = protowire.AppendTag(b, watchIDField, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(s.id))
	}
	return b
}

// codec is gRPC's own, for all but shared responses.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	s, ok := v.(*sharedResponse)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	if err := s.told.encode(); err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(s.begin(nil)), mem.SliceBuffer(s.told.body)}, nil
}

// wanted are the events of a batch that x is told, as it wants them.
func (x *watch) wanted(events []*mvccpb.Event, compacted int64) []*mvccpb.Event {
	plain := func(e *mvccpb.Event) bool { return e.PrevKv == nil }
	if !x.noPut && !x.noDelete && !slices.ContainsFunc(events, func(e *mvccpb.Event) bool { return !plain(e) }) {
		return events
	}
	out := make([]*mvccpb.Event, 0, len(events))
	for _, e := range events {
		if x.noPut && e.Type == mvccpb.Event_PUT || x.noDelete && e.Type == mvccpb.Event_DELETE {
			continue
		}
		// As in etcd, what was before a compacted revision is not told, although
		// it may still be in memory: clients take it for a reason to start anew.
		if !plain(e) && (!x.prevKV || e.Kv.ModRevision-1 < compacted) {
			e = &mvccpb.Event{Type: e.Type, Kv: e.Kv} // events are shared
		}
		out = append(out, e)
	}
	return out
}
