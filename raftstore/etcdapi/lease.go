package etcdapi

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"edged/raftstore"
)

type leaseService struct {
	pb.UnimplementedLeaseServer
	*Server
}

func (s leaseService) LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	return s.store.LeaseGrant(ctx, req)
}

func (s leaseService) LeaseRevoke(ctx context.Context, req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	return s.store.LeaseRevoke(ctx, req)
}

func (s leaseService) LeaseTimeToLive(ctx context.Context, req *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	if req.Keys {
		if err := s.store.PermitLease(ctx, req.ID, false); err != nil {
			return nil, err
		}
	}
	return s.store.LeaseTimeToLive(ctx, req)
}

func (s leaseService) LeaseLeases(ctx context.Context, req *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	resp, err := s.store.LeaseLeases(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, l := range resp.Leases {
		if err := s.store.PermitLease(ctx, l.ID, false); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (s leaseService) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	done := make(chan error, 1)
	go func() { done <- s.keepAlive(stream) }()
	select {
	case err := <-done:
		return err
	case <-stream.Context().Done():
		// Receiving ends when the handler has returned.
		return context.Cause(stream.Context())
	}
}

func (s leaseService) keepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// The header is older than the renewal: a lease that this one came too
		// late for was revoked at a later revision than it shows.
		resp := &pb.LeaseKeepAliveResponse{ID: req.ID, Header: s.header()}
		resp.TTL, err = s.renew(stream.Context(), req.ID)
		if errors.Is(err, raftstore.ErrLeaseNotFound) {
			resp.TTL, err = 0, nil
		}
		if err != nil {
			return toStatus(err)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (s leaseService) renew(ctx context.Context, id int64) (ttl int64, err error) {
	if ctx, err = s.identify(ctx); err != nil {
		return 0, err
	}
	if err := s.store.PermitUser(ctx); err != nil {
		return 0, err
	}
	if err := s.store.PermitLease(ctx, id, true); err != nil {
		return 0, err
	}
	return s.store.LeaseRenew(ctx, id)
}
