package etcdapi

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

type authService struct {
	pb.UnimplementedAuthServer
	*Server
}

// ask carries out a request about users and returns the response of type T.
func ask[T proto.Message](ctx context.Context, s *Server, req *pb.InternalRaftRequest) (T, error) {
	var none T
	resp, err := s.store.Administer(ctx, req)
	if err != nil {
		return none, err
	}
	out, ok := resp.(T)
	if !ok {
		return none, fmt.Errorf("the store answered %T, want %T", resp, none)
	}
	return out, nil
}

func (s authService) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return ask[*pb.AuthEnableResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthEnable: r})
}

func (s authService) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return ask[*pb.AuthDisableResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthDisable: r})
}

func (s authService) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return ask[*pb.AuthStatusResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthStatus: r})
}

func (s authService) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return s.store.Authenticate(ctx, r)
}

func (s authService) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	return ask[*pb.AuthUserAddResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserAdd: r})
}

func (s authService) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return ask[*pb.AuthUserGetResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserGet: r})
}

func (s authService) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return ask[*pb.AuthUserListResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserList: r})
}

func (s authService) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return ask[*pb.AuthUserDeleteResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserDelete: r})
}

func (s authService) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	return ask[*pb.AuthUserChangePasswordResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserChangePassword: r})
}

func (s authService) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return ask[*pb.AuthUserGrantRoleResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserGrantRole: r})
}

func (s authService) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return ask[*pb.AuthUserRevokeRoleResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthUserRevokeRole: r})
}

func (s authService) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return ask[*pb.AuthRoleAddResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleAdd: r})
}

func (s authService) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return ask[*pb.AuthRoleGetResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleGet: r})
}

func (s authService) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return ask[*pb.AuthRoleListResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleList: r})
}

func (s authService) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return ask[*pb.AuthRoleDeleteResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleDelete: r})
}

func (s authService) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return ask[*pb.AuthRoleGrantPermissionResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleGrantPermission: r})
}

func (s authService) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return ask[*pb.AuthRoleRevokePermissionResponse](ctx, s.Server, &pb.InternalRaftRequest{AuthRoleRevokePermission: r})
}
