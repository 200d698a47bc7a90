package auth

import (
	"bytes"
	"encoding/base64"
	"errors"
	"maps"
	"math"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Errors of requests, in etcd's words.
var (
	ErrRootUserNotExist     = errors.New("auth: root user does not exist")
	ErrRootRoleNotExist     = errors.New("auth: root user does not have root role")
	ErrUserAlreadyExist     = errors.New("auth: user already exists")
	ErrUserEmpty            = errors.New("auth: user name is empty")
	ErrUserNotFound         = errors.New("auth: user not found")
	ErrRoleAlreadyExist     = errors.New("auth: role already exists")
	ErrRoleNotFound         = errors.New("auth: role not found")
	ErrRoleEmpty            = errors.New("auth: role name is empty")
	ErrPermissionNotGiven   = errors.New("auth: permission not given")
	ErrAuthFailed           = errors.New("auth: authentication failed, invalid user ID or password")
	ErrNoPasswordUser       = errors.New("auth: authentication failed, password was given for no password user")
	ErrPermissionDenied     = errors.New("auth: permission denied")
	ErrRoleNotGranted       = errors.New("auth: role is not granted to the user")
	ErrPermissionNotGranted = errors.New("auth: permission is not granted to the role")
	ErrNotEnabled           = errors.New("auth: authentication is not enabled")
	ErrOldRevision          = errors.New("auth: revision in header is old")
	ErrInvalidToken         = errors.New("auth: invalid auth token")
	ErrInvalidMgmt          = errors.New("auth: invalid auth management")
)

const (
	rootUser = "root"
	rootRole = "root"
)

// Caller is who asks. The zero value is somebody without credentials.
type Caller struct {
	User string
	// Revision of the permissions that the caller's credentials were checked
	// against.
	Revision uint64
}

// Trusted is the program itself: it may do everything.
var Trusted = Caller{Revision: math.MaxUint64}

// State is the replicated part. Its zero value is not usable; see [New].
type State struct {
	enabled  bool
	revision uint64
	users    map[string]*authpb.User
	roles    map[string]*authpb.Role
	merged   map[string]*permissions // of users
}

// New returns a state without users in which everybody may do everything.
func New() *State {
	return &State{revision: 1, users: map[string]*authpb.User{}, roles: map[string]*authpb.Role{}, merged: map[string]*permissions{}}
}

// Restore makes a state of what was stored. Revision 0 stands for none stored.
func Restore(enabled bool, revision uint64, users []*authpb.User, roles []*authpb.Role) *State {
	s := New()
	s.enabled, s.revision = enabled, max(revision, 1)
	for _, u := range users {
		s.users[string(u.Name)] = u
	}
	for _, r := range roles {
		s.roles[string(r.Name)] = r
	}
	s.refresh()
	return s
}

// Enabled reports whether permissions are checked at all.
func (s *State) Enabled() bool { return s.enabled }

// Revision counts the changes of users, roles and permissions.
func (s *State) Revision() uint64 { return s.revision }

// Users returns the users, by name.
func (s *State) Users() []*authpb.User {
	out := make([]*authpb.User, 0, len(s.users))
	for _, name := range slices.Sorted(maps.Keys(s.users)) {
		out = append(out, s.users[name])
	}
	return out
}

// Roles returns the roles, by name.
func (s *State) Roles() []*authpb.Role {
	out := make([]*authpb.Role, 0, len(s.roles))
	for _, name := range slices.Sorted(maps.Keys(s.roles)) {
		out = append(out, s.roles[name])
	}
	return out
}

// User returns what is known of a user whose password is to be checked.
func (s *State) User(name string) (hash []byte, err error) {
	if !s.enabled {
		return nil, ErrNotEnabled
	}
	u := s.users[name]
	switch {
	case u == nil:
		return nil, ErrAuthFailed
	case u.GetOptions().GetNoPassword():
		return nil, ErrNoPasswordUser
	}
	return u.Password, nil
}

// Apply carries out a request that concerns users, roles or permissions, for a
// caller. handled is false for other requests. Responses have no header yet.
func (s *State) Apply(by Caller, req *pb.InternalRaftRequest) (resp proto.Message, changed, handled bool, err error) {
	if needsAdmin(req) {
		if err := s.Admin(by); err != nil {
			return nil, false, true, err
		}
	}
	before, was := s.revision, s.enabled
	resp, handled, err = s.dispatch(by, req)
	if s.revision != before || s.enabled != was {
		changed = true
		s.refresh()
	}
	return resp, changed, handled, err
}

func needsAdmin(r *pb.InternalRaftRequest) bool {
	return r.AuthEnable != nil || r.AuthDisable != nil || r.AuthUserAdd != nil || r.AuthUserDelete != nil ||
		r.AuthUserChangePassword != nil || r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil ||
		r.AuthRoleDelete != nil || r.AuthUserList != nil || r.AuthRoleList != nil
}

func (s *State) dispatch(by Caller, r *pb.InternalRaftRequest) (resp proto.Message, handled bool, err error) {
	switch {
	case r.AuthEnable != nil:
		resp, err = &pb.AuthEnableResponse{}, s.enable()
	case r.AuthDisable != nil:
		if s.enabled {
			s.enabled = false
			s.revision++
		}
		resp = &pb.AuthDisableResponse{}
	case r.AuthStatus != nil:
		resp = &pb.AuthStatusResponse{Enabled: s.enabled, AuthRevision: s.revision}
	case r.AuthUserAdd != nil:
		resp, err = &pb.AuthUserAddResponse{}, s.addUser(r.AuthUserAdd)
	case r.AuthUserDelete != nil:
		resp, err = &pb.AuthUserDeleteResponse{}, s.deleteUser(r.AuthUserDelete.Name)
	case r.AuthUserChangePassword != nil:
		resp, err = &pb.AuthUserChangePasswordResponse{}, s.changePassword(r.AuthUserChangePassword)
	case r.AuthUserGrantRole != nil:
		resp, err = &pb.AuthUserGrantRoleResponse{}, s.grantRole(r.AuthUserGrantRole)
	case r.AuthUserRevokeRole != nil:
		resp, err = &pb.AuthUserRevokeRoleResponse{}, s.revokeRole(r.AuthUserRevokeRole)
	case r.AuthUserGet != nil:
		resp, err = s.getUser(by, r.AuthUserGet.Name)
	case r.AuthUserList != nil:
		resp = &pb.AuthUserListResponse{Users: slices.Sorted(maps.Keys(s.users))}
	case r.AuthRoleAdd != nil:
		resp, err = &pb.AuthRoleAddResponse{}, s.addRole(r.AuthRoleAdd.Name)
	case r.AuthRoleDelete != nil:
		resp, err = &pb.AuthRoleDeleteResponse{}, s.deleteRole(r.AuthRoleDelete.Role)
	case r.AuthRoleGet != nil:
		resp, err = s.getRole(by, r.AuthRoleGet.Role)
	case r.AuthRoleList != nil:
		resp = &pb.AuthRoleListResponse{Roles: slices.Sorted(maps.Keys(s.roles))}
	case r.AuthRoleGrantPermission != nil:
		resp, err = &pb.AuthRoleGrantPermissionResponse{}, s.grantPermission(r.AuthRoleGrantPermission)
	case r.AuthRoleRevokePermission != nil:
		resp, err = &pb.AuthRoleRevokePermissionResponse{}, s.revokePermission(r.AuthRoleRevokePermission)
	case r.Authenticate != nil:
		resp, err = &pb.AuthenticateResponse{}, s.authenticate(r.Authenticate.Name)
	default:
		return nil, false, nil
	}
	if err != nil {
		return nil, true, err
	}
	return resp, true, nil
}

func (s *State) enable() error {
	if s.enabled {
		return nil
	}
	root := s.users[rootUser]
	if root == nil {
		return ErrRootUserNotExist
	}
	if !hasRole(root, rootRole) {
		return ErrRootRoleNotExist
	}
	s.enabled = true
	return nil
}

// authenticate only makes sure that the user is still there: the password was
// checked before, by the member that was asked.
func (s *State) authenticate(name string) error {
	if !s.enabled {
		return ErrNotEnabled
	}
	u := s.users[name]
	if u == nil || u.GetOptions().GetNoPassword() {
		return ErrAuthFailed
	}
	return nil
}

func hasRole(u *authpb.User, role string) bool { return slices.Contains(u.Roles, role) }

func (s *State) addUser(r *pb.AuthUserAddRequest) error {
	if r.Name == "" {
		return ErrUserEmpty
	}
	if s.users[r.Name] != nil {
		return ErrUserAlreadyExist
	}
	u := &authpb.User{Name: []byte(r.Name), Options: r.Options}
	if u.Options == nil {
		u.Options = &authpb.UserAddOptions{}
	}
	if !u.Options.NoPassword {
		hash, err := base64.StdEncoding.DecodeString(r.HashedPassword)
		if err != nil {
			return ErrNoPasswordUser
		}
		u.Password = hash
	}
	s.users[r.Name] = u
	s.revision++
	return nil
}

func (s *State) deleteUser(name string) error {
	if s.enabled && name == rootUser {
		return ErrInvalidMgmt
	}
	if s.users[name] == nil {
		return ErrUserNotFound
	}
	delete(s.users, name)
	s.revision++
	return nil
}

// change replaces a user by a changed copy: what was handed out stays as it is.
func (s *State) change(name string, f func(*authpb.User)) {
	u := proto.CloneOf(s.users[name])
	f(u)
	s.users[name] = u
}

func (s *State) changePassword(r *pb.AuthUserChangePasswordRequest) error {
	u := s.users[r.Name]
	if u == nil {
		return ErrUserNotFound
	}
	var hash []byte
	if !u.GetOptions().GetNoPassword() {
		var err error
		if hash, err = base64.StdEncoding.DecodeString(r.HashedPassword); err != nil {
			return ErrNoPasswordUser
		}
	}
	s.change(r.Name, func(u *authpb.User) { u.Password = hash })
	s.revision++
	return nil
}

func (s *State) grantRole(r *pb.AuthUserGrantRoleRequest) error {
	u := s.users[r.User]
	if u == nil {
		return ErrUserNotFound
	}
	if r.Role != rootRole && s.roles[r.Role] == nil {
		return ErrRoleNotFound
	}
	if hasRole(u, r.Role) {
		return nil
	}
	s.change(r.User, func(u *authpb.User) {
		u.Roles = append(u.Roles, r.Role)
		slices.Sort(u.Roles)
	})
	s.revision++
	return nil
}

func (s *State) revokeRole(r *pb.AuthUserRevokeRoleRequest) error {
	if s.enabled && r.Name == rootUser && r.Role == rootRole {
		return ErrInvalidMgmt
	}
	u := s.users[r.Name]
	if u == nil {
		return ErrUserNotFound
	}
	if !hasRole(u, r.Role) {
		return ErrRoleNotGranted
	}
	s.dropRole(r.Name, r.Role)
	s.revision++
	return nil
}

func (s *State) dropRole(user, role string) {
	s.change(user, func(u *authpb.User) {
		u.Roles = slices.DeleteFunc(u.Roles, func(r string) bool { return r == role })
	})
}

func (s *State) getUser(by Caller, name string) (proto.Message, error) {
	if err := s.Admin(by); err != nil && name != by.User {
		return nil, err
	}
	u := s.users[name]
	if u == nil {
		return nil, ErrUserNotFound
	}
	return &pb.AuthUserGetResponse{Roles: slices.Clone(u.Roles)}, nil
}

func (s *State) addRole(name string) error {
	if name == "" {
		return ErrRoleEmpty
	}
	if s.roles[name] != nil {
		return ErrRoleAlreadyExist
	}
	s.roles[name] = &authpb.Role{Name: []byte(name)}
	s.revision++
	return nil
}

func (s *State) deleteRole(name string) error {
	if s.enabled && name == rootRole {
		return ErrInvalidMgmt
	}
	if s.roles[name] == nil {
		return ErrRoleNotFound
	}
	delete(s.roles, name)
	for user, u := range s.users {
		if hasRole(u, name) {
			s.dropRole(user, name)
		}
	}
	s.revision++
	return nil
}

func (s *State) getRole(by Caller, name string) (proto.Message, error) {
	if err := s.Admin(by); err != nil {
		if u := s.users[by.User]; u == nil || !hasRole(u, name) {
			return nil, err
		}
	}
	r := s.roles[name]
	if r == nil {
		return nil, ErrRoleNotFound
	}
	if name == rootRole {
		return &pb.AuthRoleGetResponse{Perm: []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}}, nil
	}
	return &pb.AuthRoleGetResponse{Perm: proto.CloneOf(r).KeyPermission}, nil
}

func (s *State) grantPermission(r *pb.AuthRoleGrantPermissionRequest) error {
	if r.Perm == nil {
		return ErrPermissionNotGiven
	}
	if !validRange(r.Perm.Key, r.Perm.RangeEnd) {
		return ErrInvalidMgmt
	}
	role := s.roles[r.Name]
	if role == nil {
		return ErrRoleNotFound
	}
	role = proto.CloneOf(role)
	i := slices.IndexFunc(role.KeyPermission, func(p *authpb.Permission) bool { return same(p, r.Perm.Key, r.Perm.RangeEnd) })
	if i >= 0 {
		role.KeyPermission[i].PermType = r.Perm.PermType
	} else {
		role.KeyPermission = append(role.KeyPermission, proto.CloneOf(r.Perm))
		slices.SortStableFunc(role.KeyPermission, func(a, b *authpb.Permission) int { return bytes.Compare(a.Key, b.Key) })
	}
	s.roles[r.Name] = role
	s.revision++
	return nil
}

func (s *State) revokePermission(r *pb.AuthRoleRevokePermissionRequest) error {
	role := s.roles[r.Role]
	if role == nil {
		return ErrRoleNotFound
	}
	role = proto.CloneOf(role)
	n := len(role.KeyPermission)
	role.KeyPermission = slices.DeleteFunc(role.KeyPermission, func(p *authpb.Permission) bool { return same(p, r.Key, r.RangeEnd) })
	if len(role.KeyPermission) == n {
		return ErrPermissionNotGranted
	}
	s.roles[r.Role] = role
	s.revision++
	return nil
}

func same(p *authpb.Permission, key, end []byte) bool {
	return bytes.Equal(p.Key, key) && bytes.Equal(p.RangeEnd, end)
}
