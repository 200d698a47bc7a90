package raftstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore/auth"
	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
	"edged/raftstore/peer"
	"edged/raftstore/vfs"
	"edged/raftstore/wal"
)

// Defaults of Config, which are etcd's.
const (
	defaultMaxTxnOps       = 128
	defaultMaxRequestBytes = 3 << 19 // 1.5 MiB
	defaultTick            = 100 * time.Millisecond
	defaultElectionTicks   = 10
	defaultCommitEntries   = 10_000
	defaultCatchUpEntries  = 5_000
	// maxLeaseTTL is etcd's bound, in seconds.
	maxLeaseTTL = 9_000_000_000
)

// Config says where a store is and what it accepts.
type Config struct {
	files vfs.FS // of the log, in tests; nil is the machine's

	// Dir is the store's folder; it is made, mode 0700, if it is not there.
	Dir string
	// Name is the member's, for people.
	Name   string
	Logger *slog.Logger
	// MaxTxnOps and MaxRequestBytes bound requests; 0 is etcd's default.
	MaxTxnOps       int
	MaxRequestBytes int
	// Quota is how many bytes the state may take before writes are refused and
	// the NOSPACE alarm is raised; 0 is no bound but the disk's.
	Quota int64
	// Spare lets a cluster go on without a member whose disk is full, as without one
	// that is down, as long as the others can decide: the alarm is raised when they
	// cannot. Without it the alarm is raised at once, as etcd's users expect.
	Spare bool
	// AuthToken says how users prove themselves, as etcd's --auth-token does;
	// AuthTokenTTL and BcryptCost are etcd's, 0 for its defaults.
	AuthToken    string
	AuthTokenTTL time.Duration
	BcryptCost   int

	// Network connects to other members; without it this one stays alone.
	Network *Network
	// PeerURLs and ClientURLs are where members and clients find this one.
	PeerURLs, ClientURLs []string
	// InitialCluster are the founders of a new cluster, this member among them
	// by Name; nil founds one of this member alone. With Join it is where
	// members of the existing cluster may be found, to which this one was added
	// with its PeerURLs. Both matter only to an empty store.
	InitialCluster []InitialMember
	Join           bool
	// Hints are peer URLs at which some member or other may be found, whatever the
	// membership says: where names lead, or what was known at the first start.
	Hints []string
	// Token sets clusters with the same founders apart.
	Token string
	// FollowAddress makes the membership follow PeerURLs when they change.
	FollowAddress bool
	// Tick is the unit of time: the leader is heard every HeartbeatTicks, and may
	// be silent for ElectionTicks. 0 is etcd's 100 ms, 1 and 10.
	Tick                          time.Duration
	HeartbeatTicks, ElectionTicks int
	// RequestTimeout ends requests whose leader may be gone; 0 is etcd's 5 s and
	// two elections. A lone member waits for its disk.
	RequestTimeout time.Duration
	// RefuseWithoutLeader has writes that find no leader be refused with ErrNoLeader at
	// once, and those that wait for one, when there was none for two elections, or for
	// one and a half ElectionTicks, after one that was lost, in which too few voters were
	// heard of to elect another.
	// Those that a leader may have are answered ErrTimeoutLeaderLost then. etcd lets
	// each wait for its RequestTimeout.
	RefuseWithoutLeader bool
	// CommitEntries is after how many entries the applied state is written, if
	// it was not for its size; CatchUpEntries is how much of the log stays for
	// members that are behind. 0 is etcd's 10 000 and 5 000.
	CommitEntries, CatchUpEntries uint64
	// MaxLearners bounds the members without vote, 0 for no bound.
	MaxLearners int
	// StrictReconfig refuses changes of the membership that could cost the
	// quorum.
	StrictReconfig bool
	// HashOnCompact remembers the hash of what a compaction forgets, for members
	// and clients that compare; it costs reading everything each time.
	HashOnCompact bool
	// CompactionBatch is about how many revisions a step of a compaction looks at,
	// CompactionSleep the time between steps; 0 is etcd's 1000 and 10 ms.
	CompactionBatch int
	CompactionSleep time.Duration
	// LeaseCheckpoint is how often the leader writes down how long leases have
	// left, 0 for never: a new leader then gives them their full time.
	LeaseCheckpoint time.Duration
	// SlowApply is how long applying an entry may take before a line in the log
	// tells of it; 0 is etcd's 100 ms.
	SlowApply time.Duration
	// StateFile is the name of the state's file in Dir, "" for state.db.
	StateFile string
	// CheckStart refuses to start when another member holds something else.
	// CheckEvery and CheckCompactedEvery are how often the leader compares what
	// the members hold, and what they compacted; 0 is never. See corrupt.go.
	CheckStart                      bool
	CheckEvery, CheckCompactedEvery time.Duration
}

// Network carries what members send each other. The caller decides who may
// connect.
type Network struct {
	Listener net.Listener
	Dial     func(ctx context.Context, url string) (net.Conn, error)
	// Answer answers what another member asks with [Store.Ask]; from is 0 for who
	// is not a member. nil answers nothing.
	Answer func(from uint64, body []byte) ([]byte, error)
	// Misses is told, on the member that leads, when it begins to hear nothing of
	// another and when it hears of all again, or leads no more. It must not wait. nil
	// tells nobody; it is not called without Silence.
	Misses func(bool)
	// Silence is told, on every member that is not silent itself, of those that are,
	// seconds before anybody takes them for gone. It must not wait. nil tells nobody.
	Silence func(Silence)
}

// InitialMember is a founder.
type InitialMember struct {
	Name     string
	PeerURLs []string
}

// Store is one member. Its methods may be called from any goroutine.
type Store struct {
	cfg    Config
	log    *slog.Logger
	db     *mvcc.DB
	node   *node
	lessor *lessor
	tokens *auth.Tokens
	peers  *peer.Transport // nil without a Network
	member uint64
	nextID atomic.Uint64
	disk   *vfs.Measured // under the log

	counters *counters
	urls     atomic.Pointer[[]string] // this member's own
	moved    chan struct{}            // holds one: urls were replaced
	forQuota atomic.Bool              // this member's NOSPACE alarm is for its quota
	follow   atomic.Bool              // the membership follows urls
	// cluster is 0 until a joining member knows it.
	cluster atomic.Uint64

	ready   chan struct{} // closed when this member has caught up with a leader once
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	closed  error // of Close
}

// Open opens the store in cfg.Dir, or makes an empty one, and returns when it
// answers requests: when there is a leader.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := OpenUnready(ctx, cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.ready:
		return s, nil
	case <-s.node.done:
		return nil, errors.Join(s.node.failure(), s.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Close())
	}
}

// OpenUnready is Open without waiting for a leader; see Ready. What the log knows
// to be decided is applied: the state on disk may be of many starts ago. ctx is for
// asking the cluster that is joined.
func OpenUnready(ctx context.Context, cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store's folder: %w", err)
	}
	cfg = withDefaults(cfg)
	exists, err := wal.Exists(vfs.OS{}, filepath.Join(cfg.Dir, "wal"))
	if err != nil {
		return nil, fmt.Errorf("look for the log: %w", err)
	}
	dbPath := cfg.statePath()
	if !exists {
		if _, err := os.Stat(dbPath); err == nil {
			return nil, fmt.Errorf("%w: %s is there but its log %s is not; restore a snapshot with `edged snapshot restore`", ErrCorrupt, dbPath, filepath.Join(cfg.Dir, "wal"))
		}
	}
	if err := removeSnapshots(cfg.Dir); err != nil {
		return nil, err
	}
	tokens, err := auth.NewTokens(cfg.AuthToken, cfg.AuthTokenTTL, time.Now)
	if err != nil {
		return nil, err
	}
	db, err := mvcc.Open(mvcc.Config{Path: dbPath, Logger: cfg.Logger, Authenticated: remember(tokens), HashOnCompact: cfg.HashOnCompact})
	if err != nil {
		return nil, err
	}
	if cfg.files == nil {
		cfg.files = vfs.OS{}
	}
	s := &Store{cfg: cfg, log: cfg.Logger, db: db, tokens: tokens, ready: make(chan struct{}), disk: vfs.Measure(cfg.files, "wal.append"), counters: newCounters(cfg), moved: make(chan struct{}, 1)}
	s.urls.Store(&s.cfg.PeerURLs)
	if err := s.start(ctx, exists); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	select {
	case <-s.node.replayed:
		return s, nil
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Close())
	}
}

func (cfg *Config) statePath() string {
	return filepath.Join(cfg.Dir, cmp.Or(cfg.StateFile, "state.db"))
}

func withDefaults(cfg Config) Config {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v *int
		d int
	}{{&cfg.MaxTxnOps, defaultMaxTxnOps}, {&cfg.MaxRequestBytes, defaultMaxRequestBytes}, {&cfg.ElectionTicks, defaultElectionTicks}} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if cfg.Tick == 0 {
		cfg.Tick = defaultTick
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 5*time.Second + 2*time.Duration(cfg.ElectionTicks)*cfg.Tick
	}
	if cfg.SlowApply <= 0 {
		cfg.SlowApply = slowApply
	}
	if cfg.CommitEntries == 0 {
		cfg.CommitEntries = defaultCommitEntries
	}
	if cfg.CatchUpEntries == 0 {
		cfg.CatchUpEntries = defaultCatchUpEntries
	}
	return cfg
}

// removeSnapshots removes snapshots that were being received.
func removeSnapshots(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "snapshot-*.tmp"))
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("remove a leftover: %w", err)
		}
	}
	return nil
}

// start finds out who this member is and starts it.
func (s *Store) start(ctx context.Context, exists bool) error {
	var log *wal.Log
	var content wal.Content
	var err error
	config := wal.Config{FS: s.disk, Dir: filepath.Join(s.cfg.Dir, "wal"), Logger: s.log, Reserve: reserveSegments}
	if exists {
		if log, content, err = wal.Open(config); err != nil {
			return err
		}
	}
	others, err := s.identify(ctx, config, &log, &content)
	if err == nil {
		s.member = content.MemberID
		err = s.startNode(log, content)
	}
	if err != nil {
		if log != nil {
			err = errors.Join(err, log.Close())
		}
		return err
	}
	// Ids of requests must differ between members and from those that a log
	// replayed after a crash still holds; clocks start in 1970 here and there.
	var first [8]byte
	if _, err := rand.Read(first[:]); err != nil {
		return errors.Join(err, log.Close())
	}
	s.nextID.Store(binary.BigEndian.Uint64(first[:]))
	s.ctx, s.stop = context.WithCancel(context.Background())
	if s.cfg.Network != nil {
		s.peers = peer.New(peer.Config{
			Self: s.member, Cluster: s.cluster.Load(), URLs: s.cfg.PeerURLs, Hints: s.cfg.Hints, Listener: s.cfg.Network.Listener, Dial: s.cfg.Network.Dial,
			Handler: &peers{s}, Logger: s.log,
		})
	}
	s.meet(others)
	if s.cfg.CheckStart && exists && s.peers != nil && others != nil {
		if err := s.checkStart(ctx, others); err != nil {
			s.stop()
			return errors.Join(err, s.peers.Close(), log.Close())
		}
	}
	s.running.Go(s.node.run)
	s.running.Go(s.node.commitLazily)
	s.running.Go(func() { s.RunWhileLeader(s.ctx, s.lessor.run) })
	s.running.Go(s.settle)
	s.running.Go(s.keepRoom)
	s.running.Go(s.forget)
	s.running.Go(func() { s.every(s.ctx, s.cfg.CheckEvery, s.checkNow) })
	s.running.Go(func() { s.every(s.ctx, s.cfg.CheckCompactedEvery, (&compactions{s: s}).check) })
	return nil
}

// identify makes an empty store a member, and returns the membership as far as
// it is known.
func (s *Store) identify(ctx context.Context, config wal.Config, log **wal.Log, content *wal.Content) (*consensus.Membership, error) {
	if raw := s.db.ConfState(); len(raw) > 0 {
		m, err := consensus.DecodeMembership(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, s.cfg.statePath(), err)
		}
		return m, nil
	}
	fresh := *log == nil
	joining := fresh && s.cfg.Join || !fresh && content.Intent == joiningPlace
	if !fresh && !joining && content.Snapshot.Index > 1 {
		return nil, nil // the Core says what is missing
	}
	m, self, err := s.membership(ctx, joining, content.MemberID)
	if err != nil {
		return nil, err
	}
	content.MemberID = self
	if fresh {
		if *log, err = wal.Create(config, self); err != nil {
			return nil, err
		}
		if joining {
			err = (*log).Intend(joiningPlace)
		}
	}
	if err != nil || joining {
		return m, err
	}
	entries := content.Entries
	if err := consensus.Bootstrap(recordingState{s.db}, *log, m, len(entries) == 0); err != nil {
		return nil, err
	}
	content.Snapshot, content.Intent = wal.Snapshot{Index: 1, Term: 1}, wal.Snapshot{}
	return m, nil
}

// joiningPlace in the log says that the member waits for its first snapshot.
var joiningPlace = wal.Snapshot{Index: ^uint64(0)}

// membership finds out who belongs to the cluster and which member this is: was,
// if it is known already.
func (s *Store) membership(ctx context.Context, joining bool, was uint64) (*consensus.Membership, uint64, error) {
	if joining {
		return s.askCluster(ctx, was)
	}
	if s.cfg.InitialCluster == nil {
		if was == 0 {
			var id [8]byte
			if _, err := rand.Read(id[:]); err != nil {
				return nil, 0, err
			}
			was = binary.BigEndian.Uint64(id[:])>>1 | 1
		}
		m, err := consensus.NewMembership([]consensus.Member{{ID: was, Name: s.cfg.Name, PeerURLs: s.cfg.PeerURLs, ClientURLs: s.cfg.ClientURLs}})
		return m, was, err
	}
	var members []consensus.Member
	self := uint64(0)
	for _, f := range s.cfg.InitialCluster {
		e := consensus.Member{ID: consensus.MemberID(f.PeerURLs, s.cfg.Token, 0), PeerURLs: slices.Sorted(slices.Values(f.PeerURLs))}
		if f.Name == s.cfg.Name {
			self = e.ID
		}
		members = append(members, e)
	}
	if self == 0 {
		return nil, 0, fmt.Errorf("member %q is not among the founders of the cluster", s.cfg.Name)
	}
	if was != 0 && was != self {
		return nil, 0, fmt.Errorf("the store in %s is member %x's, the founder %q is %x", s.cfg.Dir, was, s.cfg.Name, self)
	}
	m, err := consensus.NewMembership(members)
	return m, self, err
}

// askCluster asks the members of the cluster that is to be joined, all at once: some
// may join in this moment too, and answer when they have been answered.
func (s *Store) askCluster(ctx context.Context, was uint64) (*consensus.Membership, uint64, error) {
	if s.cfg.Network == nil {
		return nil, 0, errors.New("a member without a network cannot join a cluster")
	}
	var urls []string
	for _, f := range s.cfg.InitialCluster {
		for _, u := range f.PeerURLs {
			if !slices.Contains(s.cfg.PeerURLs, u) {
				urls = append(urls, u)
			}
		}
	}
	if len(urls) == 0 {
		return nil, 0, errors.New("join the cluster: no other member is named")
	}
	type answer struct {
		at   int
		m    *consensus.Membership
		self uint64
		err  error
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(urls))
	for i, u := range urls {
		asking.Go(func() {
			m, self, err := s.askMember(ctx, u, was)
			answers <- answer{i, m, self, err}
		})
	}
	failed := make([]error, len(urls))
	for range urls {
		a := <-answers
		if a.err == nil || errors.Is(a.err, ErrRemoved) {
			return a.m, a.self, a.err
		}
		failed[a.at] = a.err
	}
	return nil, 0, fmt.Errorf("%w: %w", ErrNotLetIn, failed[len(failed)-1])
}

// askMember asks one member, and finds this one in what it knows.
func (s *Store) askMember(ctx context.Context, at string, was uint64) (*consensus.Membership, uint64, error) {
	body, err := peer.Ask(ctx, s.cfg.Network.Dial, at, callMembers, nil)
	var m *consensus.Membership
	if err == nil {
		m, err = consensus.DecodeMembership(body)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s who the members are: %w", at, err)
	}
	for _, e := range m.Members {
		if e.ID == was || was == 0 && slices.ContainsFunc(e.PeerURLs, func(u string) bool { return slices.Contains(s.cfg.PeerURLs, u) }) {
			return m, e.ID, nil
		}
	}
	if was != 0 && m.WasRemoved(was) {
		return nil, 0, ErrRemoved
	}
	return nil, 0, fmt.Errorf("%s does not know a member at %s: add it first", at, strings.Join(s.cfg.PeerURLs, ","))
}

func (s *Store) startNode(log *wal.Log, content wal.Content) (err error) {
	s.lessor = newLessor(s)
	cfg := nodeConfig{
		self: s.member, tick: s.cfg.Tick, electionTicks: s.cfg.ElectionTicks, heartbeatTicks: s.cfg.HeartbeatTicks, requestTimeout: s.cfg.RequestTimeout,
		commitEntries: s.cfg.CommitEntries, catchUp: s.cfg.CatchUpEntries,
		members: s.meet, applied: s.applied, send: s.send, connected: s.reaches, sendSnapshot: s.sendSnapshot, discard: s.discard,
		counters: s.counters, refuse: s.cfg.RefuseWithoutLeader,
	}
	if s.cfg.Network != nil {
		cfg.greet = func(id uint64) { s.peers.Tell(id, callMembers, nil) }
		cfg.heard = func(id uint64) time.Time { return s.peers.Heard(id) }
	}
	if s.cfg.Network != nil && s.cfg.Network.Silence != nil {
		cfg.silence = s.tellSilence
		if cfg.misses = s.cfg.Network.Misses; cfg.misses == nil {
			cfg.misses = func(bool) {}
		}
	}
	s.node, err = newNode(cfg, s.db, log, content, s.log)
	return err
}

// settle waits until this member has caught up with a leader, and then sees to
// it that the cluster knows its name and where it is.
func (s *Store) settle() {
	for s.node.mayRead(s.ctx) != nil {
		select {
		case <-s.ctx.Done():
			return
		case <-s.node.done:
			return
		case <-time.After(s.cfg.Tick):
		}
	}
	// As in etcd, a member that answers has told its name, if it could: only one that
	// has counts when members are to change.
	err := s.describe(s.ctx)
	close(s.ready)
	for {
		var again <-chan time.Time
		if err != nil {
			again = time.After(time.Second)
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.node.done:
			return
		case <-again:
		case <-s.moved:
		}
		err = s.describe(s.ctx)
	}
}

// Move says where this member is from now on. The others hear of it at once, and
// the membership does when there is a leader.
func (s *Store) Move(urls []string) {
	s.urls.Store(&urls)
	s.follow.Store(true)
	if s.peers != nil {
		s.peers.SetURLs(urls)
	}
	s.lookAgain()
}

// follows says whether the membership follows where members say that they are.
func (s *Store) follows() bool { return s.cfg.FollowAddress || s.follow.Load() }

// lookAgain has settle compare this member with the membership.
func (s *Store) lookAgain() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// Ready is closed when there is a leader and this member has caught up with it
// once.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Close stops the store; a leader first hands over to another voter, so that the
// others need no election. Requests that wait are answered with ErrStopped;
// whether a write among them took place is open.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.handOver()
		s.stop()
		s.node.stop()
		s.running.Wait()
		var err error
		if s.peers != nil {
			err = s.peers.Close()
		}
		s.closed = errors.Join(err, s.db.Commit(), s.node.wal.Close(), s.db.Close())
	})
	return s.closed
}

// Done is closed when the store has stopped: by Close, because its disk failed,
// or because the member was removed. Err then says why.
func (s *Store) Done() <-chan struct{} { return s.node.done }

// Err is why the store stopped by itself, or nil.
func (s *Store) Err() error { return s.node.failure() }

// Range reads keys.
func (s *Store) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(req); err != nil {
		return nil, err
	}
	if !req.Serializable {
		if err := s.node.mayRead(ctx); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	resp, err := s.db.Range(callerOf(ctx), req)
	s.counters.ranges.Since(start)
	if err != nil {
		return nil, err
	}
	s.header(resp.Header)
	return resp, nil
}

// Put writes one key.
func (s *Store) Put(ctx context.Context, req *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(req); err != nil {
		return nil, err
	}
	return propose[*pb.PutResponse](ctx, s, &pb.InternalRaftRequest{Put: req})
}

// DeleteRange deletes keys.
func (s *Store) DeleteRange(ctx context.Context, req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if len(req.Key) == 0 {
		return nil, ErrEmptyKey
	}
	return propose[*pb.DeleteRangeResponse](ctx, s, &pb.InternalRaftRequest{DeleteRange: req})
}

// Txn compares and then writes and reads, at one revision.
func (s *Store) Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(req, s.cfg.MaxTxnOps); err != nil {
		return nil, err
	}
	if readsOnly(req) {
		return s.readTxn(ctx, req)
	}
	return propose[*pb.TxnResponse](ctx, s, &pb.InternalRaftRequest{Txn: req})
}

// Compact forgets history before req.Revision; with req.Physical it returns
// when this device's file has forgotten it too.
func (s *Store) Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := propose[*pb.CompactionResponse](ctx, s, &pb.InternalRaftRequest{Compaction: req})
	if err == nil && req.Physical {
		err = s.waitCompacted(ctx, req.Revision)
	}
	return resp, err
}

// WatchOptions say what to watch: the keys in [Key, RangeEnd) from
// StartRevision on, or from now if that is 0.
type WatchOptions struct {
	Key, RangeEnd []byte
	StartRevision int64
	PrevKV        bool
}

// Watch returns a watcher; see mvcc.Watcher. It needs no Close.
func (s *Store) Watch(_ context.Context, o WatchOptions) (*mvcc.Watcher, error) {
	if len(o.Key) == 0 {
		return nil, ErrEmptyKey
	}
	return s.db.Watch(o.Key, o.RangeEnd, o.StartRevision, o.PrevKV), nil
}

// Event is a change of a key.
type Event = mvccpb.Event

// Revision returns the newest applied revision and the oldest that may be read.
func (s *Store) Revision() (current, compacted int64) { return s.db.Revision() }

// ReadIndex returns a revision that is at least as new as every write that was
// acknowledged before the call, and that reads of this device already show.
func (s *Store) ReadIndex(ctx context.Context) (int64, error) {
	if err := s.node.mayRead(ctx); err != nil {
		return 0, err
	}
	rev, _ := s.db.Revision()
	return rev, nil
}

// Status describes the member.
type Status struct {
	ClusterID                 uint64
	MemberID, Leader, Term    uint64
	AppliedIndex, CommitIndex uint64
	Revision, Compacted       int64
	SizeBytes, SizeBytesUsed  int64
	NoSpace, IsLearner        bool
}

// Status describes the member as it is now.
func (s *Store) Status() Status {
	v := s.node.view()
	st := Status{
		ClusterID: s.ClusterID(), MemberID: s.member, Leader: v.leader, Term: v.term, AppliedIndex: s.db.Applied().Index, CommitIndex: s.node.commit.Load(),
		NoSpace: s.node.full.Load() || s.node.low.Load(), IsLearner: s.IsLearner(),
	}
	st.Revision, st.Compacted = s.db.Revision()
	st.SizeBytes, st.SizeBytesUsed = s.db.Size()
	return st
}

// RunWhileLeader runs f with a context that ends when this member stops
// leading, each time it leads, until ctx ends. It waits for f to return.
func (s *Store) RunWhileLeader(ctx context.Context, f func(context.Context)) {
	for {
		v := s.node.view()
		if v.decides {
			s.runTerm(ctx, v.term, f)
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.node.done:
			return
		case <-v.changed:
		}
	}
}

// runTerm runs f until this member leads no more, or in another term.
func (s *Store) runTerm(ctx context.Context, term uint64, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		defer cancel()
		for v := s.node.view(); v.decides && v.term == term; v = s.node.view() {
			select {
			case <-ctx.Done():
				return
			case <-s.node.done:
				return
			case <-v.changed:
			}
		}
	})
	f(ctx)
	<-ctx.Done()
}

func (s *Store) header(h *pb.ResponseHeader) {
	h.ClusterId, h.MemberId, h.RaftTerm = s.cluster.Load(), s.member, s.node.view().term
}
