package etcdapi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"edged/raftstore"
	"edged/raftstore/auth"
)

// statuses are what clients see of the store's errors.
var statuses = []struct{ err, status error }{
	{raftstore.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{raftstore.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
	{raftstore.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{raftstore.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
	{raftstore.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{raftstore.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{raftstore.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{raftstore.ErrValueProvided, rpctypes.ErrGRPCValueProvided},
	{raftstore.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
	{raftstore.ErrTooManyOps, rpctypes.ErrGRPCTooManyOps},
	{raftstore.ErrRequestTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{raftstore.ErrLeaseTTLTooLong, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{raftstore.ErrInvalidSort, rpctypes.ErrGRPCInvalidSortOption},
	{raftstore.ErrStopped, rpctypes.ErrGRPCStopped},
	{raftstore.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{raftstore.ErrCorruptCluster, rpctypes.ErrGRPCCorrupt},
	{raftstore.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	{raftstore.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{raftstore.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{raftstore.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{raftstore.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{raftstore.ErrMemberBadURLs, rpctypes.ErrGRPCMemberBadURLs},
	{raftstore.ErrMemberNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	{raftstore.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
	{raftstore.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
	{raftstore.ErrNotEnoughStarted, status.Error(codes.Unknown, rpctypes.ErrMemberNotEnoughStarted.Error())}, // etcd's mistake
	{raftstore.ErrTimeout, rpctypes.ErrGRPCTimeout},
	{raftstore.ErrTimeoutLeaderLost, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{raftstore.ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged},
	{raftstore.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy},
	{raftstore.ErrBadTransferee, rpctypes.ErrGRPCBadLeaderTransferee},
	{auth.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
	{auth.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
	{auth.ErrUserAlreadyExist, rpctypes.ErrGRPCUserAlreadyExist},
	{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{auth.ErrRoleAlreadyExist, rpctypes.ErrGRPCRoleAlreadyExist},
	{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{auth.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
	{auth.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
	{auth.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
	{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{auth.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{auth.ErrNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
	{auth.ErrInvalidToken, rpctypes.ErrGRPCInvalidAuthToken},
	{auth.ErrInvalidMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
	{auth.ErrOldRevision, rpctypes.ErrGRPCAuthOldRevision},
}

// clientServices are clients of the store in etcd: codes are lost on the way through
// the client, words are not.
var clientServices = []string{"/v3lockpb.Lock/", "/v3electionpb.Election/"}

// statusOf is toStatus for an error of a method's.
func statusOf(method string, err error) error {
	err = toStatus(err)
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded:
		return err
	}
	if slices.ContainsFunc(clientServices, func(s string) bool { return strings.HasPrefix(method, s) }) {
		return status.Error(codes.Unknown, status.Convert(err).Message())
	}
	return err
}

// toStatus gives an error of the store the form in which etcd's clients know it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
