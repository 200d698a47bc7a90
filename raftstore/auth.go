package raftstore

import (
	"context"
	"encoding/base64"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
)

// Caller is who a request comes from; see [WithCaller].
type Caller = auth.Caller

type callerKey struct{}

// WithCaller says that requests with this context come from outside, from c.
// Requests without a caller are the program's own and may do everything.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

func callerOf(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return auth.Trusted
}

// remember keeps tokens in step with the entries that were applied.
func remember(t *auth.Tokens) func(token, user string) {
	return func(token, user string) {
		if token != "" {
			t.Assign(token, user)
		} else {
			t.Forget(user)
		}
	}
}

// AuthEnabled reports whether permissions are checked.
func (s *Store) AuthEnabled() bool {
	enabled, _ := s.authState()
	return enabled
}

func (s *Store) authState() (enabled bool, revision uint64) {
	// The question cannot fail.
	_ = s.db.Permit(func(a *auth.State) error {
		enabled, revision = a.Enabled(), a.Revision()
		return nil
	})
	return enabled, revision
}

// CallerOf tells whose token this is. It waits for the entry that made it, which
// this member may not have applied yet.
func (s *Store) CallerOf(ctx context.Context, token string) (Caller, error) {
	if s.tokens.Simple() {
		index, ok := auth.Index(token)
		if !ok {
			return Caller{}, auth.ErrInvalidToken
		}
		if err := s.db.WaitApplied(ctx, index); err != nil {
			return Caller{}, auth.ErrInvalidToken
		}
	}
	_, revision := s.authState()
	c, ok := s.tokens.Caller(token, revision)
	if !ok {
		return Caller{}, auth.ErrInvalidToken
	}
	return c, nil
}

// NamedCaller is a user who has proved who it is by a certificate.
func (s *Store) NamedCaller(user string) Caller {
	_, revision := s.authState()
	return Caller{User: user, Revision: revision}
}

// PermitUser refuses requests without credentials when permissions are checked.
func (s *Store) PermitUser(ctx context.Context) error {
	if c := callerOf(ctx); c != auth.Trusted && c.User == "" && s.AuthEnabled() {
		return auth.ErrUserEmpty
	}
	return nil
}

// PermitAdmin refuses requests of whoever does not have the root role.
func (s *Store) PermitAdmin(ctx context.Context) error {
	return s.db.Permit(func(a *auth.State) error { return a.Admin(callerOf(ctx)) })
}

// PermitRead refuses requests of whoever may not read [key, end).
func (s *Store) PermitRead(ctx context.Context, key, end []byte) error {
	return s.db.Permit(func(a *auth.State) error { return a.Read(callerOf(ctx), key, end) })
}

// PermitLease refuses requests of whoever may not write, or only read, every key
// of a lease.
func (s *Store) PermitLease(ctx context.Context, id int64, write bool) error {
	return s.db.PermitLease(callerOf(ctx), id, write)
}

// Authenticate gives a token to who knows a user's password.
func (s *Store) Authenticate(ctx context.Context, req *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if _, err := s.ReadIndex(ctx); err != nil {
		return nil, err
	}
	for {
		var hash []byte
		var checked uint64
		if err := s.db.Permit(func(a *auth.State) (err error) {
			checked = a.Revision()
			hash, err = a.User(req.Name)
			return err
		}); err != nil {
			return nil, err
		}
		if bcrypt.CompareHashAndPassword(hash, []byte(req.Password)) != nil {
			s.log.Warn("somebody gave a wrong password", "user", req.Name)
			return nil, auth.ErrAuthFailed
		}
		resp, err := propose[*pb.AuthenticateResponse](ctx, s, &pb.InternalRaftRequest{
			Authenticate: &pb.InternalAuthenticateRequest{Name: req.Name, SimpleToken: s.tokens.Prefix()},
		})
		if err != nil {
			return nil, err
		}
		_, now := s.authState()
		if now != checked {
			continue // the password may have changed since it was checked
		}
		if !s.tokens.Simple() {
			resp.Token, err = s.tokens.Sign(req.Name, now)
		}
		return resp, err
	}
}

// Administer carries out a request about users, roles and permissions: one of
// the Auth fields of req. Passwords do not reach the log.
func (s *Store) Administer(ctx context.Context, req *pb.InternalRaftRequest) (proto.Message, error) {
	if r := req.AuthUserAdd; r != nil && !r.GetOptions().GetNoPassword() {
		hash, err := s.hash(r.Password)
		if err != nil {
			return nil, err
		}
		req.AuthUserAdd = &pb.AuthUserAddRequest{Name: r.Name, Options: r.Options, HashedPassword: hash}
	}
	if r := req.AuthUserChangePassword; r != nil && r.Password != "" {
		hash, err := s.hash(r.Password)
		if err != nil {
			return nil, err
		}
		req.AuthUserChangePassword = &pb.AuthUserChangePasswordRequest{Name: r.Name, HashedPassword: hash}
	}
	return s.ask(ctx, req)
}

func (s *Store) hash(password string) (string, error) {
	cost := s.cfg.BcryptCost
	if cost < bcrypt.MinCost || cost > bcrypt.MaxCost {
		cost = bcrypt.DefaultCost
	}
	h, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	return base64.StdEncoding.EncodeToString(h), err
}

// ask is propose for whatever response there is.
func (s *Store) ask(ctx context.Context, req *pb.InternalRaftRequest) (proto.Message, error) {
	resp, err := s.propose(ctx, req)
	if err != nil {
		return nil, err
	}
	if r, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok && r.GetHeader() != nil {
		s.header(r.GetHeader())
	}
	return resp, nil
}
