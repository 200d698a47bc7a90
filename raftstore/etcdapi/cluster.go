package etcdapi

import (
	"context"
	"net"
	"net/url"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

type clusterService struct {
	pb.UnimplementedClusterServer
	*Server
}

// validURLs refuses what etcd refuses: at least one, http or https, with a port
// and without a path, each once.
func validURLs(urls []string) bool {
	seen := map[string]bool{}
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || seen[s] || u.Path != "" {
			return false
		}
		seen[s] = true
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil {
				return false
			}
		case "unix", "unixs":
		default:
			return false
		}
	}
	return len(urls) > 0
}

func (s clusterService) MemberAdd(ctx context.Context, req *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if !validURLs(req.PeerURLs) {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.MemberAdd(ctx, req)
}

func (s clusterService) MemberRemove(ctx context.Context, req *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.MemberRemove(ctx, req)
}

func (s clusterService) MemberUpdate(ctx context.Context, req *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if !validURLs(req.PeerURLs) {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.MemberUpdate(ctx, req)
}

func (s clusterService) MemberPromote(ctx context.Context, req *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.MemberPromote(ctx, req)
}

func (s clusterService) MemberList(ctx context.Context, req *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if req.Linearizable {
		if _, err := s.store.ReadIndex(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	return s.store.MemberList(ctx, req)
}
