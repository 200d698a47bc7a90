package etcdapi

import (
	"context"
	"strings"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"edged/raftstore"
)

// identify adds to ctx who the request comes from. Without permissions being
// checked that is nobody.
func (s *Server) identify(ctx context.Context) (context.Context, error) {
	if !s.store.AuthEnabled() {
		return raftstore.WithCaller(ctx, raftstore.Caller{}), nil
	}
	c, err := s.caller(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return raftstore.WithCaller(ctx, c), nil
}

func (s *Server) caller(ctx context.Context) (raftstore.Caller, error) {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return raftstore.Caller{}, nil
	}
	tokens := md[rpctypes.TokenFieldNameGRPC]
	if len(tokens) == 0 {
		tokens = md[rpctypes.TokenFieldNameSwagger]
	}
	if len(tokens) > 0 {
		return s.store.CallerOf(ctx, strings.TrimPrefix(tokens[0], "Bearer "))
	}
	if !s.cfg.ClientCertAuth || len(md[gatewayKey]) > 0 {
		return raftstore.Caller{}, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return raftstore.Caller{}, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return raftstore.Caller{}, nil
	}
	for _, chain := range info.State.VerifiedChains {
		if len(chain) > 0 {
			return s.store.NamedCaller(chain[0].Subject.CommonName), nil
		}
	}
	return raftstore.Caller{}, nil
}

const (
	authenticateMethod = "/etcdserverpb.Auth/Authenticate"
	snapshotMethod     = "/etcdserverpb.Maintenance/Snapshot"
	healthPrefix       = "/grpc.health.v1.Health/"
)

// wantsLeader reports whether the client would rather be refused than served by
// a member that has no leader.
func wantsLeader(ctx context.Context) (bool, error) {
	// One value at a time: the whole would be copied for each request.
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 && !utf8.ValidString(v[0]) {
		return false, rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return len(v) > 0 && v[0] == rpctypes.MetadataHasLeader, nil
}

// servedByLearners is what a member that does not vote answers.
func servedByLearners(req any) bool {
	switch r := req.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return false
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if strings.HasPrefix(info.FullMethod, healthPrefix) {
		return handler(ctx, req)
	}
	if s.store.IsLearner() && !servedByLearners(req) {
		return nil, rpctypes.ErrGRPCNotSupportedForLearner
	}
	leader, err := wantsLeader(ctx)
	if err != nil {
		return nil, err
	}
	if leader && s.store.Leader() == 0 {
		return nil, rpctypes.ErrGRPCNoLeader
	}
	if info.FullMethod != authenticateMethod {
		if ctx, err = s.identify(ctx); err != nil {
			return nil, statusOf(info.FullMethod, err)
		}
	}
	resp, err := handler(ctx, req)
	return resp, statusOf(info.FullMethod, err)
}

// stream refuses and ends streams whose client insists on a leader when there is
// none.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if strings.HasPrefix(info.FullMethod, healthPrefix) {
		return handler(srv, ss)
	}
	if s.store.IsLearner() && info.FullMethod != snapshotMethod {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	leader, err := wantsLeader(ss.Context())
	if err != nil {
		return err
	}
	ctx := ss.Context()
	if leader {
		if s.store.Leader() == 0 {
			return rpctypes.ErrGRPCNoLeader
		}
		var cancel context.CancelFunc
		ctx, cancel = s.leaders.follow(ctx)
		defer cancel()
	}
	err = handler(srv, streamWith{ss, ctx})
	if cause := context.Cause(ctx); leader && cause == rpctypes.ErrGRPCNoLeader {
		return cause
	}
	return statusOf(info.FullMethod, err)
}

type streamWith struct {
	grpc.ServerStream
	ctx context.Context
}

func (s streamWith) Context() context.Context { return s.ctx }
