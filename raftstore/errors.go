package raftstore

import (
	"errors"

	"edged/raftstore/consensus"
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
	// ErrBadTransferee refuses to make a member the leader that cannot be.
	ErrBadTransferee = errors.New("etcdserver: bad leader transferee")
	// ErrCorrupt marks data on disk that cannot be relied on.
	ErrCorrupt = wal.ErrCorrupt
	// ErrNotLetIn says that nobody of the cluster that an empty store is to join
	// answered, or knew it; it may be asked again.
	ErrNotLetIn = errors.New("join the cluster")
	// ErrRemoved ends a member that was removed from its cluster.
	ErrRemoved = errors.New("this member was removed from the cluster: empty its store to let the device join again as a new one")
)

// Errors of a cluster with several members: the request may or may not take
// place.
var (
	ErrTimeout           = errors.New("etcdserver: request timed out")
	ErrTimeoutLeaderLost = errors.New("etcdserver: request timed out, possibly due to previous leader failure")
	ErrLeaderChanged     = errors.New("etcdserver: leader changed")
)

// Errors of changes of the membership.
var (
	ErrMemberExists     = consensus.ErrMemberExists
	ErrPeerURLExists    = consensus.ErrPeerURLExists
	ErrMemberNotFound   = consensus.ErrMemberNotFound
	ErrMemberNotLearner = consensus.ErrMemberNotLearner
	ErrTooManyLearners  = consensus.ErrTooManyLearners
	ErrNotEnoughStarted = consensus.ErrNotEnoughStarted
	ErrLearnerNotReady  = errors.New("etcdserver: can only promote a learner member which is in sync with leader")
	ErrUnhealthy        = errors.New("etcdserver: unhealthy cluster")
	ErrMemberBadURLs    = errors.New("etcdserver: given member URLs are invalid")
)

// told are the errors that one member tells another by their text.
var told = []error{
	ErrLeaseNotFound, ErrNotLeader, ErrNoLeader, ErrTimeout, ErrTimeoutLeaderLost, ErrLearnerNotReady, ErrMemberNotFound,
	ErrMemberNotLearner, ErrNotEnoughStarted, ErrUnhealthy, ErrStopped, ErrNoSpace,
}

// sentinel turns an error's text that another member told back into the error.
func sentinel(err error) error {
	for _, e := range told {
		if err.Error() == e.Error() {
			return e
		}
	}
	return err
}
