package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore/auth"
	"edged/raftstore/mvcc"
	"edged/raftstore/wal"
)

// Defaults of Config, which are etcd's.
const (
	defaultMaxTxnOps       = 128
	defaultMaxRequestBytes = 3 << 19 // 1.5 MiB
	// maxLeaseTTL is etcd's bound, in seconds.
	maxLeaseTTL = 9_000_000_000
)

// Config says where a store is and what it accepts.
type Config struct {
	// Dir is the store's folder; it is made, mode 0700, if it is not there.
	Dir string
	// Name is the member's, for people.
	Name   string
	Logger *slog.Logger
	// PeerURLs and ClientURLs are where members and clients find this one.
	PeerURLs, ClientURLs []string
	// MaxTxnOps and MaxRequestBytes bound requests; 0 is etcd's default.
	MaxTxnOps       int
	MaxRequestBytes int
	// Quota is how many bytes the state may take before writes are refused and
	// the NOSPACE alarm is raised; 0 is no bound but the disk's.
	Quota int64
	// AuthToken says how users prove themselves, as etcd's --auth-token does;
	// AuthTokenTTL and BcryptCost are etcd's, 0 for its defaults.
	AuthToken    string
	AuthTokenTTL time.Duration
	BcryptCost   int
}

// Store is one member. Its methods may be called from any goroutine.
type Store struct {
	cfg    Config
	log    *slog.Logger
	db     *mvcc.DB
	node   *node
	lessor *lessor
	tokens *auth.Tokens
	member uint64
	nextID atomic.Uint64

	stop    context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	closed  error // of Close
}

// Open opens the store in cfg.Dir, or makes an empty one, and returns when it
// answers requests.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxTxnOps == 0 {
		cfg.MaxTxnOps = defaultMaxTxnOps
	}
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = defaultMaxRequestBytes
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store's folder: %w", err)
	}
	walDir := filepath.Join(cfg.Dir, "wal")
	exists, err := wal.Exists(walDir)
	if err != nil {
		return nil, fmt.Errorf("look for the log: %w", err)
	}
	dbPath := filepath.Join(cfg.Dir, "state.db")
	if !exists {
		if _, err := os.Stat(dbPath); err == nil {
			return nil, fmt.Errorf("%w: %s is there but its log %s is not; restore a snapshot with `edged snapshot restore`", ErrCorrupt, dbPath, walDir)
		}
	}
	tokens, err := auth.NewTokens(cfg.AuthToken, cfg.AuthTokenTTL, time.Now)
	if err != nil {
		return nil, err
	}
	db, err := mvcc.Open(mvcc.Config{Path: dbPath, Logger: cfg.Logger, Authenticated: remember(tokens)})
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: cfg.Logger, db: db, tokens: tokens}
	if err := s.start(walDir, exists); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	select {
	case <-s.node.leading:
	case <-s.node.done:
		return nil, errors.Join(s.node.failure(), s.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Close())
	}
	return s, nil
}

func (s *Store) start(walDir string, exists bool) (err error) {
	var log *wal.Log
	var content wal.Content
	if exists {
		log, content, err = wal.Open(walDir, s.log)
	} else {
		var id [8]byte
		if _, err := rand.Read(id[:]); err != nil {
			return err
		}
		content.MemberID = binary.BigEndian.Uint64(id[:])>>1 | 1
		log, err = wal.Create(walDir, content.MemberID, s.log)
	}
	if err != nil {
		return err
	}
	s.member = content.MemberID
	if s.node, err = newNode(s.db, log, content, s.log); err != nil {
		return errors.Join(err, log.Close())
	}
	// Ids of requests must differ from those that a log replayed after a crash
	// still holds.
	s.nextID.Store(uint64(time.Now().UnixNano()) << 8)
	s.lessor = newLessor(s.db, s.propose)
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.running.Go(func() { s.node.run(ctx) })
	s.running.Go(func() { s.node.commitLazily(ctx) })
	s.running.Go(func() {
		select {
		case <-ctx.Done():
		case <-s.node.leading:
			s.lessor.run(ctx)
		}
	})
	return nil
}

// Close stops the store. Requests that wait are answered with ErrStopped;
// whether a write among them took place is open.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.stop()
		s.running.Wait()
		s.closed = errors.Join(s.db.Commit(), s.node.close(), s.db.Close())
	})
	return s.closed
}

// Done is closed when the store has stopped, by Close or because its disk
// failed; Err then says why.
func (s *Store) Done() <-chan struct{} { return s.node.done }

// Err is why the store stopped by itself, or nil.
func (s *Store) Err() error { return s.node.failure() }

// Range reads keys.
func (s *Store) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(req); err != nil {
		return nil, err
	}
	resp, err := s.db.Range(callerOf(ctx), req)
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
		err = s.db.Commit()
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
func (s *Store) ReadIndex(context.Context) (int64, error) {
	if err := s.node.failure(); err != nil {
		return 0, err
	}
	rev, _ := s.db.Revision()
	return rev, nil
}

// Status describes the member.
type Status struct {
	MemberID, Leader, Term   uint64
	AppliedIndex             uint64
	Revision, Compacted      int64
	SizeBytes, SizeBytesUsed int64
	NoSpace                  bool
	IsLearner                bool
	CommitIndex, ClusterID   uint64
}

// Status describes the member as it is now.
func (s *Store) Status() Status {
	st := Status{MemberID: s.member, Leader: s.member, Term: s.node.term.Load(), AppliedIndex: s.db.Applied().Index, NoSpace: s.node.full.Load()}
	st.Revision, st.Compacted = s.db.Revision()
	st.SizeBytes, st.SizeBytesUsed = s.db.Size()
	st.CommitIndex, st.ClusterID = st.AppliedIndex, s.ClusterID()
	return st
}

// RunWhileLeader runs f with a context that ends when this member stops
// leading, each time it leads, until ctx ends. It waits for f to return.
func (s *Store) RunWhileLeader(ctx context.Context, f func(context.Context)) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	go func() {
		select {
		case <-s.node.done:
			cancel()
		case <-inner.Done():
		}
	}()
	f(inner)
	<-inner.Done()
}

func (s *Store) header(h *pb.ResponseHeader) {
	h.ClusterId, h.MemberId, h.RaftTerm = s.ClusterID(), s.member, s.node.term.Load()
}
