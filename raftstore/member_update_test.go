package raftstore

import (
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestMemberUpdateLooksForTheMemberFirst, as etcd's does.
func TestMemberUpdateLooksForTheMemberFirst(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, urls := range [][]string{nil, {"%"}, {"http://x:1"}} {
		if _, err := s.MemberUpdate(t.Context(), &pb.MemberUpdateRequest{ID: s.MemberID() + 1, PeerURLs: urls}); !errors.Is(err, ErrMemberNotFound) {
			t.Errorf("one that is not there, to %q: %v", urls, err)
		}
	}
	if _, err := s.MemberUpdate(t.Context(), &pb.MemberUpdateRequest{ID: s.MemberID()}); !errors.Is(err, ErrMemberBadURLs) {
		t.Errorf("to nowhere: %v", err)
	}
}
