package registry

import (
	"fmt"
	"os"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore"
)

// TestLoneDeviceReadsItsLogFirst: after a power cut the state is behind the log. A
// device that needs no other never answers from that state, and never says that it
// reaches nobody, however long its log takes.
func TestLoneDeviceReadsItsLogFirst(t *testing.T) {
	before := t.TempDir()
	s, err := raftstore.Open(t.Context(), raftstore.Config{Dir: before})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var last int64
	for i := range 100 {
		resp, err := FromRaft(s).Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: fmt.Append(nil, i), Value: []byte("v")},
		}}}})
		if err != nil {
			t.Fatal(err)
		}
		last = resp.Header.Revision
	}
	for range 5 {
		cut := t.TempDir()
		if err := os.CopyFS(cut, os.DirFS(before)); err != nil {
			t.Fatal(err)
		}
		s, err := raftstore.OpenUnready(t.Context(), raftstore.Config{Dir: cut})
		if err != nil {
			t.Fatal(err)
		}
		impatient := &raftStore{Store: s, born: time.Now().Add(-time.Hour)}
		if revision, err := impatient.ReadIndex(t.Context()); err != nil || revision < last {
			t.Errorf("revision %d, %v; want at least %d", revision, err, last)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
