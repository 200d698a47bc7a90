package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"edged/internal/atomicfile"
	"edged/raftstore"
)

// adopt takes a data-dir over that `etcdutl snapshot restore` made: state, and a
// log of etcd's that holds only who the members are, which the flags say as well.
// One that an etcd has run on is refused: its log may hold more than its state.
// Cut short, it is done again.
func (s *storeServer) adopt() error {
	dir := filepath.Join(s.cfg.dataDir, "member")
	theirs := filepath.Join(s.cfg.dataDir, "member.etcd")
	if _, err := os.Stat(filepath.Join(dir, "version")); !errors.Is(err, os.ErrNotExist) {
		return err // ours, or not to be known
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
		if err := restoredOnly(dir); err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		if err := os.Rename(dir, theirs); err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		if err := atomicfile.SyncDir(s.cfg.dataDir); err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
	}
	if _, err := os.Stat(theirs); err != nil {
		return nil
	}
	// Restore begins anew what was cut short.
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	err := raftstore.Restore(raftstore.RestoreConfig{
		Dir: dir, StateFile: stateFile, Snapshot: filepath.Join(theirs, stateFile), NoHash: true,
		Name: s.cfg.name, PeerURLs: s.cfg.advertisePeer, InitialCluster: s.cfg.founders, Token: s.cfg.initialToken, Logger: s.log,
	})
	if err != nil {
		return fmt.Errorf("--data-dir: take %s over: %w", theirs, err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "version"), []byte(dataVersion), 0o644); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	s.log.Info("took a restored snapshot of etcd's over", "data-dir", s.cfg.dataDir)
	return os.RemoveAll(theirs)
}

// restoredOnly refuses a folder that is not as etcdutl leaves it: with one
// snapshot of raft's, of the first term, which a member's first start ends.
func restoredOnly(dir string) error {
	snaps, err := filepath.Glob(filepath.Join(dir, "snap", "*.snap"))
	if err != nil {
		return err
	}
	index, term, err := raftstore.AppliedOf(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	if term != 1 || len(snaps) != 1 || filepath.Base(snaps[0]) != fmt.Sprintf("%016x-%016x.snap", term, index) {
		return fmt.Errorf("%s is that of an etcd that has run: save a snapshot with `etcdctl snapshot save`, restore it with `etcdutl snapshot restore` to another folder, and name that", dir)
	}
	return nil
}
