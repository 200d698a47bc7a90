package consensus

import (
	"cmp"
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Errors of changes of the membership, with etcd's texts.
var (
	ErrMemberExists     = errors.New("etcdserver: member ID already exist")
	ErrPeerURLExists    = errors.New("etcdserver: Peer URLs already exists")
	ErrMemberNotFound   = errors.New("etcdserver: member not found")
	ErrMemberNotLearner = errors.New("etcdserver: can only promote a learner member")
	ErrTooManyLearners  = errors.New("etcdserver: too many learner members in cluster")
	ErrNotEnoughStarted = errors.New("etcdserver: re-configuration failed due to not enough started members")
)

// membershipVersion is the first thing in an encoded Membership.
const membershipVersion = 1

// Member is one device's place in the cluster.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peerURLs,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	Learner    bool     `json:"learner,omitempty"`
}

// Membership is the cluster's members at some index of the log. A Membership
// is never changed, only replaced.
type Membership struct {
	Version int      `json:"version"`
	Cluster uint64   `json:"cluster"`
	Members []Member `json:"members"` // by id
	// Removed ids never come back: a member that has one stops.
	Removed []uint64 `json:"removed,omitempty"`
}

// Encode is how a Membership lies in the state; equal ones encode equally.
func (m *Membership) Encode() ([]byte, error) {
	c := *m
	c.Version = membershipVersion
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the membership: %w", err)
	}
	return data, nil
}

// DecodeMembership reads what Encode wrote.
func DecodeMembership(data []byte) (*Membership, error) {
	m := new(Membership)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("the membership does not decode: %w", err)
	}
	if m.Version != membershipVersion {
		return nil, fmt.Errorf("the membership is of version %d, this program understands %d: use a newer edged", m.Version, membershipVersion)
	}
	return m, nil
}

// Member returns the member with an id, or nil.
func (m *Membership) Member(id uint64) *Member {
	i, ok := slices.BinarySearchFunc(m.Members, id, func(e Member, id uint64) int { return cmp.Compare(e.ID, id) })
	if !ok {
		return nil
	}
	return &m.Members[i]
}

// WasRemoved reports whether a member with that id was there and was removed.
func (m *Membership) WasRemoved(id uint64) bool { return slices.Contains(m.Removed, id) }

// Voters returns the ids of those that vote, by id.
func (m *Membership) Voters() []uint64 { return m.ids(false) }

// Learners returns the ids of those that do not vote, by id.
func (m *Membership) Learners() []uint64 { return m.ids(true) }

func (m *Membership) ids(learner bool) (ids []uint64) {
	for _, e := range m.Members {
		if e.Learner == learner {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// ConfState is the Membership in raft's terms.
func (m *Membership) ConfState() *raftpb.ConfState {
	return &raftpb.ConfState{Voters: m.Voters(), Learners: m.Learners()}
}

// MemberID is the id of a member of a new cluster, the same on every device
// that was told the same. unixSeconds tells apart members that come and go with
// the same URLs; it is 0 at a cluster's birth. It is etcd's.
func MemberID(peerURLs []string, token string, unixSeconds int64) uint64 {
	text := strings.Join(slices.Sorted(slices.Values(peerURLs)), "") + token
	if unixSeconds != 0 {
		text += fmt.Sprint(unixSeconds)
	}
	sum := sha1.Sum([]byte(text))
	return binary.BigEndian.Uint64(sum[:8])
}

// NewMembership is that of a new cluster with these voters, whose ids are set.
func NewMembership(members []Member) (*Membership, error) {
	m := &Membership{Members: slices.Clone(members)}
	slices.SortFunc(m.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	var ids []byte
	seen := map[string]bool{}
	for i, e := range m.Members {
		if e.ID == 0 || i > 0 && e.ID == m.Members[i-1].ID {
			return nil, fmt.Errorf("members %d and %d of the new cluster have the same id %x", i-1, i, e.ID)
		}
		for _, u := range e.PeerURLs {
			if seen[u] {
				return nil, fmt.Errorf("two members of the new cluster have the peer URL %s", u)
			}
			seen[u] = true
		}
		ids = binary.BigEndian.AppendUint64(ids, e.ID)
	}
	sum := sha1.Sum(ids)
	m.Cluster = binary.BigEndian.Uint64(sum[:8])
	return m, nil
}

// Change is what the context of a raftpb.ConfChange says beside type and id.
type Change struct {
	Member Member `json:"member"`
	// Promote makes a learner a voter instead of adding a member.
	Promote bool `json:"promote,omitempty"`
	// Demote takes a voter's vote instead of adding a learner.
	Demote bool `json:"demote,omitempty"`
	// MaxLearners refuses a learner beyond that many, 0 for no bound.
	MaxLearners int `json:"maxLearners,omitempty"`
}

// ConfChange encodes a change under a request's id.
func (c Change) ConfChange(typ raftpb.ConfChangeType, request uint64) (*raftpb.ConfChange, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode a change of the membership: %w", err)
	}
	return &raftpb.ConfChange{Id: proto.Uint64(request), Type: typ.Enum(), NodeId: proto.Uint64(c.Member.ID), Context: data}, nil
}

// Apply returns what the Membership becomes, or why it stays. It depends on its
// arguments alone, so every member comes to the same answer.
func (m *Membership) Apply(cc *raftpb.ConfChange) (*Membership, error) {
	var c Change
	if err := json.Unmarshal(cc.GetContext(), &c); err != nil {
		return nil, fmt.Errorf("a change of the membership does not decode: %w", err)
	}
	id := cc.GetNodeId()
	c.Member.ID = id
	old := m.Member(id)
	next := *m
	next.Members = slices.Clone(m.Members)
	switch cc.GetType() {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		learner := cc.GetType() == raftpb.ConfChangeAddLearnerNode
		if c.Promote {
			if old == nil {
				return nil, ErrMemberNotFound
			}
			if !old.Learner {
				return nil, ErrMemberNotLearner
			}
			next.Member(id).Learner = false
			return &next, nil
		}
		if c.Demote {
			if old == nil {
				return nil, ErrMemberNotFound
			}
			if v := m.Voters(); old.Learner || len(v) == 1 {
				return nil, ErrNotEnoughStarted
			}
			next.Member(id).Learner = true
			return &next, nil
		}
		if err := m.mayAdd(c.Member, learner, c.MaxLearners); err != nil {
			return nil, err
		}
		c.Member.Learner = learner
		next.Members = append(next.Members, c.Member)
		slices.SortFunc(next.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	case raftpb.ConfChangeRemoveNode:
		if old == nil {
			return nil, ErrMemberNotFound
		}
		if v := m.Voters(); !old.Learner && len(v) == 1 {
			return nil, ErrNotEnoughStarted
		}
		next.Members = slices.DeleteFunc(next.Members, func(e Member) bool { return e.ID == id })
		next.Removed = append(slices.Clone(m.Removed), id)
	case raftpb.ConfChangeUpdateNode:
		if old == nil {
			return nil, ErrMemberNotFound
		}
		if err := m.urlsFree(id, c.Member.PeerURLs); err != nil {
			return nil, err
		}
		next.Member(id).PeerURLs = c.Member.PeerURLs
	default:
		return nil, fmt.Errorf("change of the membership of unknown type %v", cc.GetType())
	}
	return &next, nil
}

func (m *Membership) mayAdd(e Member, learner bool, maxLearners int) error {
	if m.Member(e.ID) != nil || m.WasRemoved(e.ID) {
		return ErrMemberExists
	}
	if err := m.urlsFree(0, e.PeerURLs); err != nil {
		return err
	}
	if learner && maxLearners > 0 && len(m.Learners()) >= maxLearners {
		return ErrTooManyLearners
	}
	return nil
}

func (m *Membership) urlsFree(id uint64, urls []string) error {
	for _, e := range m.Members {
		if e.ID != id && slices.ContainsFunc(e.PeerURLs, func(u string) bool { return slices.Contains(urls, u) }) {
			return ErrPeerURLExists
		}
	}
	return nil
}

// Describe returns the Membership with a member's name and client URLs changed,
// or nil if that changes nothing.
func (m *Membership) Describe(id uint64, name string, clientURLs []string) *Membership {
	old := m.Member(id)
	if old == nil || old.Name == name && slices.Equal(old.ClientURLs, clientURLs) {
		return nil
	}
	next := *m
	next.Members = slices.Clone(m.Members)
	e := next.Member(id)
	e.Name, e.ClientURLs = name, clientURLs
	return &next
}
