package consensus_test

import (
	"bytes"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/consensus"
)

// FuzzMembership: whatever lies in the state, and whatever change an entry asks
// for, is taken or refused, and what is taken is written and read back.
func FuzzMembership(f *testing.F) {
	f.Add([]byte(`{"version":1,"cluster":5,"members":[{"id":1,"peerURLs":["http://a"]},{"id":2,"learner":true}],"removed":[9]}`), uint8(0), uint64(3), []byte(`{"member":{"peerURLs":["http://b"]}}`))
	f.Add([]byte(`{"version":1,"members":[{"id":1}]}`), uint8(1), uint64(1), []byte(`{}`))
	f.Add([]byte(`{"version":1,"members":[{"id":2},{"id":1}]}`), uint8(2), uint64(1), []byte(`{"member":{"id":7}}`))
	f.Add([]byte(`{"version":1,"members":[{"id":1},{"id":2}]}`), uint8(3), uint64(2), []byte(`{"demote":true,"promote":true,"maxLearners":-1}`))
	f.Add([]byte(`{"version":2}`), uint8(9), uint64(0), []byte(`[]`))
	f.Fuzz(func(t *testing.T, state []byte, kind uint8, id uint64, change []byte) {
		m, err := consensus.DecodeMembership(state)
		if err != nil {
			return
		}
		next, err := m.Apply(&raftpb.ConfChange{Type: raftpb.ConfChangeType(kind).Enum(), NodeId: proto.Uint64(id), Context: change})
		if err != nil {
			next = m
		}
		next.ConfState()
		next.Describe(id, "n", []string{"http://c"})
		data, err := next.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := consensus.DecodeMembership(data)
		if err != nil {
			t.Fatalf("%s is not read back: %v", data, err)
		}
		if twice, err := again.Encode(); err != nil || !bytes.Equal(data, twice) {
			t.Errorf("%s is read back as %s, %v", data, twice, err)
		}
	})
}
