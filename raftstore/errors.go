package raftstore

import (
	"errors"

	"edged/raftstore/mvcc"
	"edged/raftstore/wal"
)

// Errors of requests.
var (
	ErrCompacted       = mvcc.ErrCompacted
	ErrFutureRev       = mvcc.ErrFutureRev
	ErrKeyNotFound     = mvcc.ErrKeyNotFound
	ErrDuplicateKey    = mvcc.ErrDuplicateKey
	ErrLeaseNotFound   = mvcc.ErrLeaseNotFound
	ErrLeaseExists     = mvcc.ErrLeaseExists
	ErrEmptyKey        = errors.New("etcdserver: key is not provided")
	ErrValueProvided   = errors.New("etcdserver: value is provided")
	ErrLeaseProvided   = errors.New("etcdserver: lease is provided")
	ErrTooManyOps      = errors.New("etcdserver: too many operations in txn request")
	ErrRequestTooLarge = errors.New("etcdserver: request is too large")
	ErrLeaseTTLTooLong = errors.New("etcdserver: too large lease TTL")
	ErrInvalidSort     = errors.New("etcdserver: invalid sort option")
)

// Errors of the store.
var (
	// ErrStopped is returned after Close, or after the disk failed.
	ErrStopped = errors.New("etcdserver: server stopped")
	// ErrNoSpace refuses writes while the disk is full, the quota is used up, or
	// an alarm says that it was. Reads and deletions go on.
	ErrNoSpace = mvcc.ErrNoSpace
	// ErrCorruptCluster refuses requests after members were found to differ.
	ErrCorruptCluster = mvcc.ErrCorrupt
	// ErrNotLeader refuses what only the leader can do.
	ErrNotLeader = errors.New("etcdserver: not leader")
	// ErrNoLeader refuses what needs a leader while there is none.
	ErrNoLeader = errors.New("etcdserver: no leader")
	// Errors of membership.
	ErrMemberNotFound = errors.New("etcdserver: member not found")
	ErrUnhealthy      = errors.New("etcdserver: unhealthy cluster")
	// ErrBadTransferee refuses to make a member the leader that cannot be.
	ErrBadTransferee = errors.New("etcdserver: bad leader transferee")
	// ErrCorrupt marks data on disk that cannot be relied on.
	ErrCorrupt = wal.ErrCorrupt
)
