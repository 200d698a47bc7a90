package etcdapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"edged/raftstore"
	"edged/raftstore/etcdapi"
	"edged/raftstore/etcdapi/lockpb"
)

func opPut(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func opTxn(then, otherwise []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: then, Failure: otherwise}}}
}

type ops = []*pb.RequestOp

// TestOverlapInTransactions has what an etcd 3.7.3 answered: what may stand together, and
// what is there afterwards.
func TestOverlapInTransactions(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	for name, tt := range map[string]struct {
		ops  ops
		want string // "" is refused
	}{
		"all but this":                     {ops{opDelete("a", "\x00"), opPut("c", "new")}, "c=new@1"},
		"this, then nothing":               {ops{opPut("c", "new"), opDelete("a", "\x00")}, "none"},
		"a range and a key of it":          {ops{opDelete("a", "d"), opPut("c", "new")}, ""},
		"a key twice":                      {ops{opPut("c", "1"), opPut("c", "2")}, ""},
		"deleted in a later one":           {ops{opTxn(ops{opPut("c", "new")}, nil), opTxn(ops{opDelete("a", "d")}, nil)}, "e=old@1"},
		"deleted in an earlier one":        {ops{opTxn(ops{opDelete("a", "d")}, nil), opTxn(ops{opPut("c", "new")}, nil)}, ""},
		"deleted inside, put outside":      {ops{opTxn(ops{opDelete("a", "d")}, nil), opPut("c", "new")}, ""},
		"put inside, deleted outside":      {ops{opTxn(ops{opPut("c", "new")}, nil), opDelete("a", "d")}, ""},
		"on either path":                   {ops{opTxn(ops{opPut("c", "new")}, ops{opPut("c", "other"), opDelete("d", "")})}, "a=old@1 c=new@2 e=old@1"},
		"on the other path of another one": {ops{opTxn(ops{opPut("c", "new")}, nil), opTxn(nil, ops{opPut("c", "other")})}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"a", "c", "e"} {
				s.put(t, key, "old")
			}
			_, err := s.kv.Txn(t.Context(), &pb.TxnRequest{Success: tt.ops})
			if tt.want == "" {
				if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCDuplicateKey).Message() {
					t.Errorf("not refused: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
			if err != nil {
				t.Fatal(err)
			}
			got := "none"
			for i, kv := range r.Kvs {
				if i == 0 {
					got = ""
				}
				got = strings.TrimSpace(fmt.Sprintf("%s %s=%s@%d", got, kv.Key, kv.Value, kv.Version))
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestEdges is of requests that no client of etcd makes, answered as by an etcd 3.7.3.
func TestEdges(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	ctx := t.Context()
	for _, c := range []*pb.Compare{{Key: []byte("none"), Result: 9}, {Key: []byte("none"), Target: 9}} {
		if r, err := s.kv.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{c}}); err != nil || !r.Succeeded {
			t.Errorf("compared by %v: %v, %v", c, r, err)
		}
	}
	// What was never compacted was so at -1.
	at := func(rev int64) error {
		_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), Revision: rev}}}, opPut("k", "v")}})
		return err
	}
	if err := at(-1); err != nil {
		t.Errorf("at revision -1: %v", err)
	}
	if err := at(-2); status.Code(err) != codes.OutOfRange {
		t.Errorf("at revision -2: %v", err)
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("none"), IgnoreValue: true, Lease: 9}); status.Code(err) != codes.NotFound {
		t.Errorf("neither a key nor a lease: %v", err)
	}
	const longest = 9000000000
	if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 1, TTL: longest}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 1}); err != nil || r.TTL < longest-3600 || r.TTL > longest {
		t.Errorf("the longest lease: %v, %v", r, err)
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("leased"), Value: []byte("v"), Lease: 1}); err != nil {
		t.Fatal(err)
	}
	for target, lease := range map[pb.RangeRequest_SortTarget]int64{pb.RangeRequest_KEY: 0, pb.RangeRequest_MOD: 0, pb.RangeRequest_VALUE: 1} {
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("leased"), KeysOnly: true, SortTarget: target})
		if err != nil || len(r.Kvs) != 1 || r.Kvs[0].Lease != lease || r.Kvs[0].Value != nil || r.Kvs[0].Version != 1 || r.Kvs[0].CreateRevision != r.Header.Revision {
			t.Errorf("keys by %v: %v, %v", target, r, err)
		}
	}
	stream, err := s.kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("a"), SortOrder: 9})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream in no order: %v", err)
	}
	for version, want := range map[string]codes.Code{"3.6": codes.OK, "3.6.0": codes.OK, "3.6.x": codes.InvalidArgument, "3.6.1.2": codes.InvalidArgument} {
		if _, err := s.maint.Downgrade(ctx, &pb.DowngradeRequest{Version: version}); status.Code(err) != want {
			t.Errorf("downgrade to %s: %v", version, err)
		}
	}
	if _, err := s.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 7}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.maint.Status(ctx, &pb.StatusRequest{}); err != nil || len(st.Errors) != 1 || st.Errors[0] != "memberID:7 alarm:NOSPACE" {
		t.Errorf("%v, %v", st, err)
	}
}

// TestUnknownPermission permits nothing, and takes the place of what was permitted there.
func TestUnknownPermission(t *testing.T) {
	s := serve(t, raftstore.Config{BcryptCost: 4}, etcdapi.Config{})
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "r"}))
	must(s.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
	must(s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "p"}))
	must(s.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}))
	for _, kind := range []authpb.Permission_Type{authpb.Permission_READWRITE, 9} {
		must(s.auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{Key: []byte("k"), PermType: kind}}))
	}
	must(s.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}))
	must(s.auth.AuthEnable(ctx, &pb.AuthEnableRequest{}))
	token, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u", Password: "p"})
	must(nil, err)
	as := func(token string) context.Context {
		return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
	}
	if _, err := s.kv.Put(as(token.Token), &pb.PutRequest{Key: []byte("k")}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("written: %v", err)
	}
	if _, err := s.kv.Range(as(token.Token), &pb.RangeRequest{Key: []byte("k")}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("read: %v", err)
	}
	// Services that are clients in etcd lose the code.
	if _, err := lockpb.NewLockClient(s.conn).Lock(as("x.1"), &lockpb.LockRequest{Name: []byte("k")}); status.Code(err) != codes.Unknown || !strings.Contains(err.Error(), "invalid auth token") {
		t.Errorf("a lock with a wrong token: %v", err)
	}
}

// TestGatewaySpeaksOfWhatIsWrong in JSON, as grpc-gateway does in etcd.
func TestGatewaySpeaksOfWhatIsWrong(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	s.put(t, "k", "v")
	for _, tt := range []struct{ method, path, body, want string }{
		{"POST", "/v3/nothing", `{}`, `404 {"code":5,"message":"Not Found"}`},
		{"POST", "/v3/kv/range/", `{}`, `404 {"code":5,"message":"Not Found"}`},
		{"GET", "/v3/kv/range", ``, `501 {"code":12,"message":"Method Not Allowed"}`},
		{"POST", "/v3/kv/range", `{"key":"aw=="`, `400 {"code":3,"message":"unexpected EOF"}`},
		{"POST", "/v3/kv/range", ``, `400 {"code":3,"message":"etcdserver: key is not provided"}`},
		{"POST", "/v3/kv/range", `{"key":"aw==","count_only":true} {"key":""}`, `200 `},
		{"POST", "/v3beta/kv/range", `{"key":"aw==","count_only":true}`, `200 `},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+s.addr+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		// protojson puts spaces by chance.
		got := fmt.Sprintf("%d %s", resp.StatusCode, strings.ReplaceAll(string(body), ", ", ","))
		got = strings.ReplaceAll(got, `": `, `":`)
		if err != nil || got != tt.want && !(tt.want == "200 " && strings.HasPrefix(got, tt.want) && strings.Contains(got, `"count":"1"`)) {
			t.Errorf("%s %s %s: %s, %v, want %s", tt.method, tt.path, tt.body, got, err, tt.want)
		}
	}
}
