package etcdapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"edged/raftstore"
	"edged/raftstore/etcdapi"
)

// asked are methods that may be asked anything without an end to the server.
var asked = []string{
	"kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "kv/rangestream", "watch", "lease/grant", "lease/revoke",
	"lease/keepalive", "lease/timetolive", "cluster/member/list", "cluster/member/promote", "cluster/member/update",
	"maintenance/alarm", "maintenance/hashkv", "maintenance/downgrade", "auth/user/add", "auth/user/get", "auth/role/add", "auth/role/grant",
	"auth/authenticate", "election/leader", "lock/unlock", "nothing",
}

// alive makes sure that a fuzzed server is one still.
func alive(t *testing.T, s *served) {
	t.Helper()
	if _, err := s.maint.Alarm(t.Context(), &pb.AlarmRequest{}); err != nil {
		t.Fatalf("the server does not answer any more: %v", err)
	}
}

// FuzzGateway: whatever JSON a method is sent, it answers.
func FuzzGateway(f *testing.F) {
	method := func(name string) uint8 { return uint8(slices.Index(asked, name)) }
	f.Add(method("kv/range"), []byte(`{"key":"AA==","range_end":"AA=="}`))
	f.Add(method("kv/put"), []byte(`{"key":"Zm9v","value":"YmFy","lease":"9223372036854775807"}`))
	f.Add(method("kv/txn"), []byte(`{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"1"}],"success":[{},{"requestPut":{"key":"Zm9v"}}],"failure":[{"requestTxn":{}}]}`))
	f.Add(method("watch"), []byte(`{"create_request":{"key":"Zm9v","start_revision":-1}}{"cancel_request":{}}`))
	f.Add(method("lease/keepalive"), []byte(`{"ID":1}[`))
	f.Add(method("maintenance/alarm"), []byte(`{"action":99,"alarm":"CORRUPT"}`))
	f.Add(method("auth/role/grant"), []byte(`{"name":"r","perm":{"key":"Zg==","range_end":"ZQ=="}}`))
	f.Add(method("nothing"), []byte(`null`))
	var servers fuzzed
	f.Cleanup(servers.end)
	f.Fuzz(func(t *testing.T, at uint8, body []byte) {
		s := servers.next(t, fmt.Sprintf("%s %q", asked[int(at)%len(asked)], body))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // a watch has no end
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+"/v3/"+asked[int(at)%len(asked)], bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		// A handler that panics closes the connection.
		if err != nil && ctx.Err() == nil {
			t.Fatalf("%s %q: %v", req.URL.Path, body, err)
		}
		alive(t, s)
	})
}

// fuzzed is a server for many inputs, one after the other: to open one takes as long as
// to ask it a hundred times.
type fuzzed struct {
	s     *served
	dir   string
	close func() error
	asked []string // since it was opened
}

// inputsPerServer bounds what an input may have to do with those before it.
const inputsPerServer = 200

// next returns a server that is about to be asked what. If that fails the test, it says
// what the server was asked before.
func (f *fuzzed) next(t *testing.T, what string) *served {
	if len(f.asked) == inputsPerServer {
		f.end()
	}
	if f.s == nil {
		dir, err := os.MkdirTemp("/dev/shm", "edged-fuzz-") // syncs cost nothing there
		if err != nil {
			dir, err = os.MkdirTemp("", "edged-fuzz-")
		}
		if err != nil {
			t.Fatal(err)
		}
		f.dir = dir
		f.s, f.close = open(t, raftstore.Config{Dir: dir, BcryptCost: 4}, etcdapi.Config{})
	}
	f.asked = append(f.asked, what)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server was asked:\n%s", strings.Join(f.asked, "\n"))
			f.end()
		}
	})
	return f.s
}

func (f *fuzzed) end() {
	if f.s != nil {
		_ = f.close() // who is to be told has been
		os.RemoveAll(f.dir)
	}
	*f = fuzzed{}
}

// raw sends and takes what is no message yet.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }

// FuzzRequest: whatever bytes a method of gRPC's is sent, it answers, and not
// that something is wrong inside.
func FuzzRequest(f *testing.F) {
	methods := []string{
		"KV/Range", "KV/Put", "KV/DeleteRange", "KV/Txn", "KV/Compact", "Lease/LeaseGrant", "Lease/LeaseRevoke", "Lease/LeaseTimeToLive",
		"Cluster/MemberUpdate", "Cluster/MemberPromote", "Maintenance/Alarm", "Maintenance/HashKV", "Maintenance/Downgrade",
		"Auth/UserAdd", "Auth/UserGrantRole", "Auth/RoleGrantPermission", "Auth/RoleRevokePermission", "Auth/Authenticate",
	}
	key := []byte("k")
	seed := func(name string, m proto.Message) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(slices.Index(methods, name)), data)
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key}}}
	seed("KV/Range", &pb.RangeRequest{Key: key, RangeEnd: []byte{0}, Limit: -1, Revision: -7, SortOrder: 2, SortTarget: 4})
	seed("KV/Put", &pb.PutRequest{Key: key, Lease: -1, IgnoreLease: true})
	seed("KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: key, Target: 4, Result: 3}}, Success: []*pb.RequestOp{put, {}}, Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{put}}}}}})
	seed("KV/Compact", &pb.CompactionRequest{Revision: -1, Physical: true})
	seed("Lease/LeaseGrant", &pb.LeaseGrantRequest{TTL: -5, ID: -9})
	seed("Cluster/MemberUpdate", &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"%"}})
	seed("Maintenance/Downgrade", &pb.DowngradeRequest{Version: "x", Action: 9})
	seed("Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: "r"})
	f.Add(uint8(3), []byte{0x12, 0x02, 0x0a, 0x00, 0xff})
	var servers fuzzed
	f.Cleanup(servers.end)
	f.Fuzz(func(t *testing.T, at uint8, data []byte) {
		method := methods[int(at)%len(methods)]
		s := servers.next(t, fmt.Sprintf("%s %x", method, data))
		var answer []byte
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := s.conn.Invoke(ctx, "/etcdserverpb."+method, &data, &answer, grpc.ForceCodec(raw{}))
		if c := status.Code(err); c == codes.Unavailable && errors.Is(ctx.Err(), context.DeadlineExceeded) || c == codes.Unknown && status.Convert(err).Message() != "etcdserver: unknown method" {
			t.Fatalf("%s %x: %v", method, data, err)
		}
		alive(t, s)
	})
}
