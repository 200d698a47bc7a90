package raftstore

import (
	"encoding/json"
	"strconv"

	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
)

// recordingState writes the membership into the state's file as etcd does, too:
// what reads etcd's file finds the members there. The store itself reads its own
// row.
type recordingState struct{ *mvcc.DB }

// Advance is part of consensus.State.
func (r recordingState) Advance(a mvcc.Applied, conf []byte) {
	r.DB.Advance(a, conf)
	if conf == nil {
		return
	}
	m, err := consensus.DecodeMembership(conf)
	if err != nil {
		return // who made it knows; nobody needs these rows
	}
	members, removed := map[string][]byte{}, map[string][]byte{}
	for _, e := range m.Members {
		row, err := json.Marshal(struct {
			ID         uint64   `json:"id"`
			PeerURLs   []string `json:"peerURLs"`
			IsLearner  bool     `json:"isLearner,omitempty"`
			Name       string   `json:"name,omitempty"`
			ClientURLs []string `json:"clientURLs,omitempty"`
		}{e.ID, e.PeerURLs, e.Learner, e.Name, e.ClientURLs})
		if err == nil {
			members[strconv.FormatUint(e.ID, 16)] = row
		}
	}
	for _, id := range m.Removed {
		removed[strconv.FormatUint(id, 16)] = []byte("removed")
	}
	r.ReplaceRows(mvcc.MembersBucket, members)
	r.ReplaceRows(mvcc.RemovedBucket, removed)
}
