package raftstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"edged/internal/atomicfile"
	"edged/raftstore/consensus"
	"edged/raftstore/mvcc"
	"edged/raftstore/vfs"
	"edged/raftstore/wal"
)

// RestoreConfig says what store to make of a snapshot.
type RestoreConfig struct {
	// Dir is the store's folder, which must not hold one.
	Dir string
	// Snapshot is a file that Maintenance's Snapshot sent, of ours or of etcd's:
	// the state, and its SHA-256 behind it unless NoHash.
	Snapshot string
	NoHash   bool
	// Name, PeerURLs, InitialCluster and Token are as in Config: every founder of
	// the new cluster is restored from the same snapshot.
	Name           string
	PeerURLs       []string
	InitialCluster []InitialMember
	Token          string
	StateFile      string // as in Config
	Logger         *slog.Logger
}

// Restore makes a store of a new cluster that holds what a snapshot holds.
func Restore(cfg RestoreConfig) (err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := Store{cfg: Config{Dir: cfg.Dir, Name: cfg.Name, PeerURLs: cfg.PeerURLs, InitialCluster: cfg.InitialCluster, Token: cfg.Token, StateFile: cfg.StateFile}}
	path := s.cfg.statePath()
	for _, there := range []string{filepath.Join(cfg.Dir, "wal"), path} {
		if _, err := os.Stat(there); err == nil {
			return fmt.Errorf("%s holds a store already: empty it first, or name another folder", cfg.Dir)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the store's folder: %w", err)
	}
	members, self, err := s.membership(context.Background(), false, 0)
	if err != nil {
		return err
	}
	tmp := path + ".restore"
	if err := copySnapshot(cfg.Snapshot, tmp, !cfg.NoHash); err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	db, err := mvcc.Open(mvcc.Config{Path: tmp, Logger: cfg.Logger})
	if err != nil {
		return errors.Join(err, removeIfThere(tmp))
	}
	db.ForgetMembers()
	// The log is made last but one: a store without its state.db is one that was
	// never there.
	log, err := wal.Create(wal.Config{FS: vfs.OS{}, Dir: filepath.Join(cfg.Dir, "wal"), Logger: cfg.Logger}, self)
	if err == nil {
		err = errors.Join(consensus.Bootstrap(recordingState{db}, log, members, true), log.Close())
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("name the state: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// AppliedOf tells how much of its log a state's file reflects, one of ours or of
// etcd's.
func AppliedOf(path string) (index, term uint64, err error) {
	db, err := mvcc.Open(mvcc.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, 0, err
	}
	a := db.Applied()
	return a.Index, a.Term, db.Close()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sector is what a bbolt file's size is a multiple of; a hash behind it shows.
const sector = 512

// copySnapshot copies the state out of a snapshot and checks its hash.
func copySnapshot(from, to string, hashed bool) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	size := fi.Size()
	if size%sector == sha256.Size {
		size -= sha256.Size
	} else if hashed {
		return fmt.Errorf("%s has no hash behind it: it was cut short, or is a copy of a data file, which must be said", from)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), io.LimitReader(in, size)); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	if hashed {
		want, err := io.ReadAll(in)
		if err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
		if !bytes.Equal(want, sum.Sum(nil)) {
			return fmt.Errorf("%s is damaged: its SHA-256 is not the one behind it", from)
		}
	}
	return out.Sync()
}

// ForceNew makes the store in dir the only member of a new cluster: what is left
// to do when most members are lost for good. Everything that this member's log
// holds is kept, also what it did not know to be decided. The other members must
// be emptied before they join again. stateFile is as in Config.
func ForceNew(dir, stateFile string, logger *slog.Logger) (err error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	log, content, err := wal.Open(wal.Config{FS: vfs.OS{}, Dir: filepath.Join(dir, "wal"), Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	state := Config{Dir: dir, StateFile: stateFile}
	db, err := mvcc.Open(mvcc.Config{Path: state.statePath(), Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if db.Applied().Index < content.Snapshot.Index {
		return fmt.Errorf("%w: the log begins after entry %d, the applied state ends at %d: restore a snapshot with `edged snapshot restore`",
			ErrCorrupt, content.Snapshot.Index, db.Applied().Index)
	}
	was, err := consensus.DecodeMembership(db.ConfState())
	if err != nil {
		return fmt.Errorf("the membership in %s: %w", dir, err)
	}
	last, err := applyAll(db, content)
	if err != nil {
		return err
	}
	alone, err := aloneOf(was, content.MemberID)
	if err != nil {
		return err
	}
	data, err := alone.Encode()
	if err != nil {
		return err
	}
	if err := log.Intend(wal.Snapshot(last)); err != nil {
		return err
	}
	recordingState{db}.Advance(last, data)
	if err := db.Commit(); err != nil {
		return err
	}
	return log.Reset(wal.Snapshot(last))
}

// applyAll applies what the log holds beyond the state, but for memberships.
func applyAll(db *mvcc.DB, content wal.Content) (last mvcc.Applied, err error) {
	last = db.Applied()
	for _, e := range content.Entries {
		a := mvcc.Applied{Index: e.GetIndex(), Term: e.GetTerm()}
		if a.Index <= last.Index {
			continue
		}
		last = a
		req := new(pb.InternalRaftRequest)
		if e.GetType() != raftpb.EntryNormal || len(e.GetData()) == 0 {
			db.Advance(a, nil)
			continue
		}
		if err := proto.Unmarshal(e.GetData(), req); err != nil {
			return last, fmt.Errorf("%w: entry %d does not decode: %w", ErrCorrupt, a.Index, err)
		}
		if req.GetClusterMemberAttrSet() != nil {
			db.Advance(a, nil)
			continue
		}
		// Its proposer is gone, and a refused request changes nothing.
		_, _ = db.Apply(a, req)
	}
	return last, nil
}

// aloneOf is the membership of one member under a new cluster's id, so that the
// members of the old one have nothing more to tell it.
func aloneOf(was *consensus.Membership, self uint64) (*consensus.Membership, error) {
	me := was.Member(self)
	if me == nil {
		return nil, fmt.Errorf("member %x is not in the membership that it holds", self)
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	only := *me
	only.Learner = false
	m := &consensus.Membership{Cluster: binary.BigEndian.Uint64(id[:]), Members: []consensus.Member{only}, Removed: slices.Clone(was.Removed)}
	for _, e := range was.Members {
		if e.ID != self {
			m.Removed = append(m.Removed, e.ID)
		}
	}
	return m, nil
}
