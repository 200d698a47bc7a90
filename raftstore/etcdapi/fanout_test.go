package etcdapi

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
)

// TestSharedResponse: what is encoded once for many is on the wire what each of
// them would have got.
func TestSharedResponse(t *testing.T) {
	events := []*mvccpb.Event{
		{Kv: &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("1"), ModRevision: 7, CreateRevision: 2, Version: 3}, PrevKv: &mvccpb.KeyValue{Key: []byte("a")}},
		{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("b"), ModRevision: 8}},
	}
	shared := &told{header: &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 5, Revision: 8, RaftTerm: 2}, events: events}
	c := codec{encoding.GetCodecV2("proto")}
	for _, id := range []int64{0, 1, 1 << 40} {
		s := &sharedResponse{id, shared}
		data, err := c.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		part, err := s.AppendTo([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		for server, b := range map[string][]byte{"grpc": data.Materialize(), "rpc": part[len("before"):]} {
			got := new(pb.WatchResponse)
			if err := proto.Unmarshal(b, got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, s.response()) {
				t.Errorf("watch %d by %s: %v, want %v", id, server, got, s.response())
			}
		}
	}
}

// TestWanted: what a watch filters out or did not ask for is not told, and what is
// shared is not changed.
func TestWanted(t *testing.T) {
	put := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 7}, PrevKv: &mvccpb.KeyValue{Key: []byte("a")}}
	del := &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 8}}
	both := []*mvccpb.Event{put, del}
	if got := (&watch{noPut: true}).wanted(both, 0); len(got) != 1 || got[0] != del {
		t.Errorf("without puts: %v", got)
	}
	if got := (&watch{noDelete: true, prevKV: true}).wanted(both, 0); len(got) != 1 || got[0] != put {
		t.Errorf("without deletions: %v", got)
	}
	if got := (&watch{}).wanted(both, 0); len(got) != 2 || got[0].PrevKv != nil || put.PrevKv == nil {
		t.Errorf("without what was before: %v", got)
	}
	if got := (&watch{prevKV: true}).wanted(both, 7); got[0].PrevKv != nil {
		t.Errorf("what was before is compacted: %v", got)
	}
	if got := (&watch{prevKV: true}).wanted(both, 6); got[0].PrevKv == nil {
		t.Errorf("what was before is not compacted: %v", got)
	}
}
