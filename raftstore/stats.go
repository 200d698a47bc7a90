package raftstore

import (
	"log/slog"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"edged/internal/histogram"
	"edged/raftstore/mvcc"
	"edged/raftstore/peer"
)

// Stats are what a store has done since it was opened: what /metrics tells,
// under etcd's names. Histograms are live.
type Stats struct {
	MVCC mvcc.Stats
	// LogSync and LogWrite are of the log, which requests wait for.
	LogSync, LogWrite *histogram.Histogram
	LogBytes          int64
	Apply             []ApplyStat
	SlowApplies       uint64
	Range             *histogram.Histogram
	// ProposalsPending wait for their outcome; ProposalsFailed got none.
	ProposalsPending, ProposalsFailed uint64
	ReadsFailed, ReadsSlow            uint64
	LeaderChanges, Promotions         uint64
	Leases                            LeaseStats
	// Installing is whether another member's state is being taken over.
	Installing bool
	// SnapshotSave is how long another member's state took to arrive,
	// SnapshotSync how long the disk took over it.
	SnapshotSave, SnapshotSync *histogram.Histogram
	Peers                      []peer.Traffic
	LateHeartbeat              uint64
	AuthRevision               uint64
}

// ApplyStat is how long entries of one kind took to be applied.
type ApplyStat struct {
	Op   string
	OK   bool
	Took *histogram.Histogram
}

// LeaseStats count what happened to leases.
type LeaseStats struct {
	Granted, Revoked, Renewed, Expired uint64
	TTL                                *histogram.Histogram
}

// slowApply is the default of Config.SlowApply: etcd's --warning-apply-duration.
const slowApply = 100 * time.Millisecond

// counters are the store's own part of Stats.
type counters struct {
	leaderChanges, promotions, failed, readsFailed, readsSlow, slowApplies atomic.Uint64
	granted, revoked, renewed, expired                                     atomic.Uint64
	installing                                                             atomic.Bool

	log  *slog.Logger
	slow time.Duration

	ttl, ranges, save, saveSync *histogram.Histogram
	applied                     [len(ops)][2]*histogram.Histogram // refused, done
}

// ops are the kinds of entries that are told apart.
var ops = [...]string{"Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint", "Alarm", "Other"}

func opOf(r *pb.InternalRaftRequest) int {
	switch {
	case r.Put != nil:
		return 0
	case r.DeleteRange != nil:
		return 1
	case r.Txn != nil:
		return 2
	case r.Compaction != nil:
		return 3
	case r.LeaseGrant != nil:
		return 4
	case r.LeaseRevoke != nil:
		return 5
	case r.LeaseCheckpoint != nil:
		return 6
	case r.Alarm != nil:
		return 7
	}
	return 8
}

func newCounters(cfg Config) *counters {
	// The bounds of all are etcd's.
	c := &counters{
		log: cfg.Logger, slow: cfg.SlowApply,
		ttl: histogram.Doubling(time.Second, 24), ranges: histogram.Doubling(100*time.Microsecond, 20), save: histogram.Doubling(100*time.Millisecond, 10), saveSync: histogram.Doubling(time.Millisecond, 14),
	}
	for i := range c.applied {
		for ok := range c.applied[i] {
			c.applied[i][ok] = histogram.Doubling(100*time.Microsecond, 20)
		}
	}
	return c
}

// measuredState times how long entries take to be applied.
type measuredState struct {
	recordingState
	c *counters
}

// Apply is part of consensus.State.
func (m measuredState) Apply(a mvcc.Applied, req *pb.InternalRaftRequest) (proto.Message, error) {
	start := time.Now()
	resp, err := m.DB.Apply(a, req)
	took := time.Since(start)
	ok := 1
	if err != nil {
		ok = 0
	}
	m.c.applied[opOf(req)][ok].Observe(took)
	if took > m.c.slow {
		m.c.slowApplies.Add(1)
		m.c.log.Warn("apply request took too long", "took", took.String(), "expected-duration", m.c.slow.String(), "op", ops[opOf(req)])
	}
	return resp, err
}

// Restore is part of consensus.State.
func (m measuredState) Restore(path string) error {
	m.c.installing.Store(true)
	defer m.c.installing.Store(false)
	return m.DB.Restore(path)
}

// Stats returns what was done since the start.
func (s *Store) Stats() Stats {
	c := s.counters
	st := Stats{
		MVCC: s.db.Stats(), LogSync: s.disk.Sync, LogWrite: s.disk.Write, LogBytes: s.disk.Bytes.Load(),
		SlowApplies: c.slowApplies.Load(), Range: c.ranges, ProposalsFailed: c.failed.Load(),
		ReadsFailed: c.readsFailed.Load(), ReadsSlow: c.readsSlow.Load(),
		LeaderChanges: c.leaderChanges.Load(), Promotions: c.promotions.Load(), Installing: c.installing.Load(), SnapshotSave: c.save, SnapshotSync: c.saveSync,
		Leases: LeaseStats{c.granted.Load(), c.revoked.Load(), c.renewed.Load(), c.expired.Load(), c.ttl},
	}
	s.node.mu.Lock()
	st.ProposalsPending = uint64(len(s.node.waiting))
	s.node.mu.Unlock()
	_, st.AuthRevision = s.authState()
	if s.peers != nil {
		st.Peers, st.LateHeartbeat = s.peers.Traffic(), s.peers.LateHeartbeats()
	}
	for i, op := range ops {
		for ok, h := range c.applied[i] {
			st.Apply = append(st.Apply, ApplyStat{op, ok == 1, h})
		}
	}
	return st
}
