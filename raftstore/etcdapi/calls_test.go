package etcdapi_test

import (
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"edged/raftstore"
	"edged/raftstore/etcdapi"
)

func TestCallsAreCounted(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	const puts = 40
	for i := range puts {
		// Clients say their versions themselves: they are not told apart without end.
		ctx := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataClientAPIVersionKey, fmt.Sprint("3.", i))
		if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.kv.Put(t.Context(), &pb.PutRequest{}); err == nil {
		t.Fatal("a put without a key was taken")
	}
	w := s.stream(t)
	w.create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2})
	for n := 0; n < puts; {
		n += len(w.next().Events)
	}
	// What was sent is counted after it was.
	st := s.srv.Stats()
	for deadline := time.Now().Add(10 * time.Second); st.Events < puts && time.Now().Before(deadline); st = s.srv.Stats() {
		time.Sleep(time.Millisecond)
	}
	var put, watch etcdapi.MethodStats
	for _, m := range st.Methods {
		switch m.Method {
		case "Put":
			put = m
		case "Watch":
			if m.Service == "etcdserverpb.Watch" {
				watch = m
			}
		}
	}
	if put.Started != puts+1 || put.Ended[codes.OK] != puts || put.Ended[codes.InvalidArgument] != 1 || put.Took.Snapshot().Count != puts {
		t.Errorf("of %d puts and a bad one: %+v", puts, put)
	}
	if watch.Type != "bidi_stream" || watch.Started != 1 || watch.Received != 1 || watch.Sent < 2 {
		t.Errorf("of one watch: %+v", watch)
	}
	if st.Streams != 1 || st.Watches != 1 || st.Events != puts || st.BytesReceived == 0 || st.BytesSent == 0 {
		t.Errorf("%d streams, %d watches, %d events, %d bytes in, %d out", st.Streams, st.Watches, st.Events, st.BytesReceived, st.BytesSent)
	}
	var calls uint64
	for _, c := range st.Clients {
		calls += c.Unary
	}
	if calls != puts+1 || len(st.Clients) >= puts {
		t.Errorf("%d calls of %d versions of clients", calls, len(st.Clients))
	}
}
