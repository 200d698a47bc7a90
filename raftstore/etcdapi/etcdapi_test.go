package etcdapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"edged/raftstore"
	"edged/raftstore/etcdapi"
	"edged/raftstore/etcdapi/electionpb"
	"edged/raftstore/etcdapi/lockpb"
)

// served is a store behind its API, on a port of the loopback.
type served struct {
	store *raftstore.Store
	srv   *etcdapi.Server
	addr  string
	conn  *grpc.ClientConn
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
	auth  pb.AuthClient
}

func serve(t *testing.T, conf raftstore.Config, api etcdapi.Config) *served {
	t.Helper()
	conf.Dir = t.TempDir()
	s, end := open(t, conf, api)
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open is serve until end is called.
func open(t *testing.T, conf raftstore.Config, api etcdapi.Config) (s *served, end func() error) {
	t.Helper()
	store, err := raftstore.Open(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	api.Store, api.Gateway = store, true
	srv := etcdapi.New(api)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l, true, nil) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	end = func() error {
		conn.Close()
		return errors.Join(srv.Close(), <-ended, store.Close())
	}
	return &served{
		store: store, srv: srv, addr: l.Addr().String(), conn: conn, kv: pb.NewKVClient(conn), watch: pb.NewWatchClient(conn),
		lease: pb.NewLeaseClient(conn), maint: pb.NewMaintenanceClient(conn), auth: pb.NewAuthClient(conn),
	}, end
}

func (s *served) put(t *testing.T, key, value string) int64 {
	t.Helper()
	resp, err := s.kv.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// Every refusal has the code and the text that etcd's clients look for.
func TestRefusals(t *testing.T) {
	s := serve(t, raftstore.Config{MaxTxnOps: 4, MaxRequestBytes: 10000}, etcdapi.Config{})
	for range 5 {
		s.put(t, "k", "v")
	}
	ctx := t.Context()
	if _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	put := func(key string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
	}
	txn := func(ops ...*pb.RequestOp) func() error {
		return func() error { _, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops}); return err }
	}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{put("a")}}}}
	rng := func(r *pb.RangeRequest) func() error {
		return func() error { _, err := s.kv.Range(ctx, r); return err }
	}
	key := []byte("k")
	tests := map[string]struct {
		call func() error
		want error
	}{
		"empty key":        {rng(&pb.RangeRequest{}), rpctypes.ErrGRPCEmptyKey},
		"compacted":        {rng(&pb.RangeRequest{Key: key, Revision: 3}), rpctypes.ErrGRPCCompacted},
		"future":           {rng(&pb.RangeRequest{Key: key, Revision: 99}), rpctypes.ErrGRPCFutureRev},
		"sort order":       {rng(&pb.RangeRequest{Key: key, SortOrder: 9}), rpctypes.ErrGRPCInvalidSortOption},
		"too many ops":     {txn(put("a"), put("b"), put("c"), put("d"), put("e")), rpctypes.ErrGRPCTooManyOps},
		"nested ops count": {txn(put("b"), put("c"), put("d"), nested), rpctypes.ErrGRPCTooManyOps},
		"duplicate key":    {txn(put("a"), put("a")), rpctypes.ErrGRPCDuplicateKey},
		"nested duplicate": {txn(put("a"), nested), rpctypes.ErrGRPCDuplicateKey},
		"too large": {func() error {
			_, err := s.kv.Put(ctx, &pb.PutRequest{Key: key, Value: make([]byte, 10000)})
			return err
		}, rpctypes.ErrGRPCRequestTooLarge},
		"no such lease":   {func() error { _, err := s.kv.Put(ctx, &pb.PutRequest{Key: key, Lease: 9}); return err }, rpctypes.ErrGRPCLeaseNotFound},
		"revoke no lease": {func() error { _, err := s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 9}); return err }, rpctypes.ErrGRPCLeaseNotFound},
		"lease too long":  {func() error { _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1 << 40}); return err }, rpctypes.ErrGRPCLeaseTTLTooLarge},
		"value given": {func() error {
			_, err := s.kv.Put(ctx, &pb.PutRequest{Key: key, IgnoreValue: true, Value: key})
			return err
		}, rpctypes.ErrGRPCValueProvided},
		"nothing to ignore": {func() error {
			_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("none"), IgnoreValue: true})
			return err
		}, rpctypes.ErrGRPCKeyNotFound},
		"compact again": {func() error { _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 4}); return err }, rpctypes.ErrGRPCCompacted},
		"auth is off": {func() error {
			_, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u", Password: "p"})
			return err
		}, rpctypes.ErrGRPCAuthNotEnabled},
		"no root": {func() error { _, err := s.auth.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err }, rpctypes.ErrGRPCRootUserNotExist},
		"lock without a lease": {func() error {
			_, err := lockpb.NewLockClient(s.conn).Lock(ctx, &lockpb.LockRequest{Name: key, Lease: 9})
			return err
		}, status.Error(codes.Unknown, "etcdserver: requested lease not found")},
		"unlock nothing": {func() error {
			_, err := lockpb.NewLockClient(s.conn).Unlock(ctx, &lockpb.UnlockRequest{})
			return err
		}, status.Error(codes.Unknown, "etcdserver: key is not provided")},
		"stand without a lease": {func() error {
			_, err := electionpb.NewElectionClient(s.conn).Campaign(ctx, &electionpb.CampaignRequest{Name: key, Lease: 9})
			return err
		}, status.Error(codes.Unknown, "etcdserver: requested lease not found")},
		"remove the last member": {func() error {
			_, err := pb.NewClusterClient(s.conn).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: s.store.MemberID()})
			return err
		}, status.Error(codes.Unknown, "etcdserver: re-configuration failed due to not enough started members")},
		"downgrade somehow": {func() error {
			_, err := s.maint.Downgrade(ctx, &pb.DowngradeRequest{Action: 9, Version: "3.6"})
			return err
		}, status.Error(codes.Unknown, "etcdserver: unknown method")},
		"hash of the past": {func() error { _, err := s.maint.HashKV(ctx, &pb.HashKVRequest{Revision: 2}); return err }, rpctypes.ErrGRPCCompacted},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := tt.call()
			if status.Code(err) != status.Code(tt.want) || status.Convert(err).Message() != status.Convert(tt.want).Message() {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

// TestAnswers is of fields in which answers differed from those of etcd 3.7.3.
func TestAnswers(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	ctx := t.Context()
	if _, err := s.kv.Compact(ctx, &pb.CompactionRequest{}); err != nil {
		t.Errorf("compacted at 0 before anything else: %v", err)
	}
	for _, key := range []string{"a", "a", "b", "c", "d", "e"} {
		s.put(t, key, "v")
	}
	// One key more than the limit is sorted.
	r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z"), Limit: 3, SortTarget: pb.RangeRequest_VERSION})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	if strings.Join(keys, "") != "bcd" || !r.More || r.Count != 5 {
		t.Errorf("sorted by version: %v", r)
	}
	x, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a")}}}}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if in := x.Responses[0].GetResponseTxn(); in.Header == nil || in.Header.Revision != 0 || in.Responses[0].GetResponsePut().Header.Revision != x.Header.Revision {
		t.Errorf("nested: %v", x)
	}
	if m, err := s.maint.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: s.store.MemberID()}); err != nil || m.Header != nil {
		t.Errorf("moved to who leads: %v, %v", m, err)
	}
	if d, err := s.maint.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL}); err != nil || d.Version != "3.7" {
		t.Errorf("no downgrade cancelled: %v, %v", d, err)
	}
}

type watchStream struct {
	t *testing.T
	pb.Watch_WatchClient
}

func (s *served) stream(t *testing.T) watchStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	w, err := s.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return watchStream{t, w}
}

func (w watchStream) create(r *pb.WatchCreateRequest) *pb.WatchResponse {
	w.t.Helper()
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
		w.t.Fatal(err)
	}
	resp := w.next()
	if !resp.Created {
		w.t.Fatalf("%v instead of created", resp)
	}
	return resp
}

func (w watchStream) next() *pb.WatchResponse {
	w.t.Helper()
	resp, err := w.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func TestWatches(t *testing.T) {
	s := serve(t, raftstore.Config{MaxRequestBytes: 100 << 10}, etcdapi.Config{})
	w := s.stream(t)
	if id := w.create(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true}).WatchId; id != 0 {
		t.Errorf("the first id is %d", id)
	}
	if id := w.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), WatchId: 7, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}).WatchId; id != 7 {
		t.Errorf("id %d, want the chosen 7", id)
	}
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 7}); !r.Canceled || r.WatchId != -1 || !strings.Contains(r.CancelReason, "duplicate watch ID") {
		t.Errorf("a second watch 7: %v", r)
	}
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}); !r.Canceled || r.WatchId != -1 {
		t.Errorf("an empty range: %v", r)
	}
	s.put(t, "a", "1")
	rev := s.put(t, "a", "2")
	if e := w.next(); e.WatchId != 0 || len(e.Events) != 1 || e.Events[0].PrevKv != nil {
		t.Errorf("created: %v", e)
	}
	if e := w.next(); e.Header.Revision != rev || string(e.Events[0].PrevKv.GetValue()) != "1" {
		t.Errorf("changed: %v", e)
	}
	if _, err := s.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	got := map[int64]*pb.WatchResponse{}
	for range 2 {
		e := w.next()
		got[e.WatchId] = e
	}
	if got[7] == nil || got[7].Events[0].Type != mvccpb.Event_DELETE || got[7].Events[0].PrevKv != nil || got[0].Events[0].PrevKv == nil {
		t.Errorf("deleted: %v", got)
	}
	// Progress comes after everything that it covers.
	rev = s.put(t, "unwatched", "x")
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
		t.Fatal(err)
	}
	if p := w.next(); p.WatchId != -1 || p.Header.Revision != rev || len(p.Events) != 0 {
		t.Errorf("progress: %v", p)
	}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}}); err != nil {
		t.Fatal(err)
	}
	if r := w.next(); !r.Canceled || r.WatchId != 7 {
		t.Errorf("canceled: %v", r)
	}
	if _, err := s.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: rev}); err != nil {
		t.Fatal(err)
	}
	w.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
	if r := w.next(); !r.Canceled || r.CompactRevision != rev || r.Header.Revision != 0 {
		t.Errorf("from a compacted revision: %v", r)
	}
}

func TestLargeEventsComeInFragments(t *testing.T) {
	s := serve(t, raftstore.Config{MaxRequestBytes: 900 << 10}, etcdapi.Config{})
	value := bytes.Repeat([]byte("x"), 200<<10)
	var ops []*pb.RequestOp
	for i := range 4 {
		ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: value}}})
	}
	for range 3 {
		if _, err := s.kv.Txn(t.Context(), &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatal(err)
		}
	}
	w := s.stream(t)
	w.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 2, Fragment: true})
	events, pieces := 0, 0
	for events < 12 {
		r := w.next()
		events += len(r.Events)
		if r.Fragment {
			pieces++
		}
	}
	if pieces == 0 || events != 12 {
		t.Errorf("%d events in %d fragments", events, pieces)
	}
}

func TestQuietWatchesAreToldHowFarTheyAre(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{ProgressInterval: 100 * time.Millisecond})
	w := s.stream(t)
	id := w.create(&pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true}).WatchId
	rev := s.put(t, "b", "")
	for {
		r := w.next()
		if r.WatchId != id || len(r.Events) > 0 {
			t.Fatalf("%v", r)
		}
		if r.Header.Revision == rev {
			return
		}
	}
}

// A watch that begins in the future is not told how far the store is: clients
// go on after what they were told when a connection breaks.
func TestFutureWatchesAreToldNothing(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{ProgressInterval: 10 * time.Millisecond})
	w := s.stream(t)
	rev := s.put(t, "b", "1")
	future := w.create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: rev + 3, ProgressNotify: true}).WatchId
	present := w.create(&pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true}).WatchId
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r := w.next(); r.WatchId != present {
			t.Fatalf("at revision %d: %v", rev, r)
		}
	}
	for range 3 {
		rev = s.put(t, "b", "2")
	}
	for {
		r := w.next()
		if r.WatchId == present {
			continue
		}
		if r.Header.Revision < rev-1 {
			t.Fatalf("told of revision %d", r.Header.Revision)
		}
		if len(r.Events) > 0 {
			if r.WatchId != future || len(r.Events) != 1 || r.Events[0].Kv.ModRevision != rev {
				t.Fatalf("want one event, of revision %d: %v", rev, r)
			}
			return
		}
	}
}

func TestUsers(t *testing.T) {
	for _, token := range []string{"simple", "jwt"} {
		t.Run(token, func(t *testing.T) {
			conf := raftstore.Config{BcryptCost: 4}
			if token == "jwt" {
				conf.AuthToken = "jwt,sign-method=HS256,priv-key=" + secretFile(t)
			}
			testUsers(t, serve(t, conf, etcdapi.Config{}))
		})
	}
}

func testUsers(t *testing.T, s *served) {
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "r"}))
	must(s.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}))
	must(s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "p"}))
	must(s.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}))
	for _, p := range []*authpb.Permission{
		{Key: []byte("a"), RangeEnd: []byte("c"), PermType: authpb.Permission_READWRITE},
		{Key: []byte("c"), RangeEnd: []byte("e"), PermType: authpb.Permission_READ},
	} {
		must(s.auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: p}))
	}
	must(s.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}))
	must(s.auth.AuthEnable(ctx, &pb.AuthEnableRequest{}))
	as := func(user, password string) context.Context {
		t.Helper()
		resp, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
		if err != nil {
			t.Fatal(err)
		}
		return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, resp.Token)
	}
	if _, err := s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u", Password: "wrong"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a wrong password: %v", err)
	}
	u := as("u", "p")
	read := func(ctx context.Context, key, end string) error {
		_, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
		return err
	}
	write := func(ctx context.Context, key string) error {
		_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte(key)})
		return err
	}
	for name, tt := range map[string]struct {
		got  error
		want error
	}{
		"own range":          {read(u, "a", "e"), nil}, // two permissions that touch
		"beyond":             {read(u, "a", "f"), rpctypes.ErrGRPCPermissionDenied},
		"from key":           {read(u, "a", "\x00"), rpctypes.ErrGRPCPermissionDenied},
		"write":              {write(u, "bz"), nil},
		"write where read":   {write(u, "c"), rpctypes.ErrGRPCPermissionDenied},
		"nobody reads":       {read(ctx, "a", ""), rpctypes.ErrGRPCUserEmpty},
		"nobody writes":      {write(ctx, "a"), rpctypes.ErrGRPCUserEmpty},
		"root":               {read(as("root", "r"), "x", "\x00"), nil},
		"no token":           {read(metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, "x.1"), "a", ""), rpctypes.ErrGRPCInvalidAuthToken},
		"status is not open": {func() error { _, err := s.maint.Status(ctx, &pb.StatusRequest{}); return err }(), rpctypes.ErrGRPCUserEmpty},
		"admin only":         {func() error { _, err := s.maint.Defragment(u, &pb.DefragmentRequest{}); return err }(), rpctypes.ErrGRPCPermissionDenied},
	} {
		if status.Code(tt.got) != status.Code(tt.want) || status.Convert(tt.got).Message() != status.Convert(tt.want).Message() {
			t.Errorf("%s: %v, want %v", name, tt.got, tt.want)
		}
	}
	w, err := s.watch.Watch(u)
	must(nil, err)
	if r := (watchStream{t, w}).create(&pb.WatchCreateRequest{Key: []byte("x")}); !r.Canceled || !strings.Contains(r.CancelReason, "permission denied") {
		t.Errorf("a watch without permission: %v", r)
	}
	must(s.auth.AuthDisable(as("root", "r"), &pb.AuthDisableRequest{}))
	if err := write(ctx, "z"); err != nil {
		t.Errorf("after disabling: %v", err)
	}
}

func TestSnapshotCarriesItsChecksum(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	s.put(t, "k", strings.Repeat("v", 100<<10))
	stream, err := s.maint.Snapshot(t.Context(), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r.Blob...)
	}
	body, sum := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) || len(body)%512 != 0 {
		t.Errorf("%d bytes with a wrong checksum", len(body))
	}
}

func TestQuotaRaisesTheAlarmAndReadingGoesOn(t *testing.T) {
	s := serve(t, raftstore.Config{Quota: 256 << 10}, etcdapi.Config{})
	ctx := t.Context()
	var err error
	var last int64
	for i := 0; err == nil && i < 100; i++ {
		var r *pb.PutResponse
		if r, err = s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 20<<10)}); err == nil {
			last = r.Header.Revision
		}
	}
	if status.Convert(err).Message() != status.Convert(rpctypes.ErrGRPCNoSpace).Message() || last < 5 {
		t.Fatalf("after revision %d: %v", last, err)
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("tiny")}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("with the alarm: %v", err)
	}
	if r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err != nil || len(r.Kvs) != 1 {
		t.Errorf("reading: %v", err)
	}
	if _, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k")}); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if resp, err := http.Get("http://" + s.addr + "/health"); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("healthy with an alarm: %v, %v", resp, err)
	}
	if _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: last + 1, Physical: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.maint.Defragment(ctx, &pb.DefragmentRequest{}); err != nil {
		t.Fatal(err)
	}
	list, err := s.maint.Alarm(ctx, &pb.AlarmRequest{})
	if err != nil || len(list.Alarms) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if _, err := s.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: list.Alarms[0].MemberID, Alarm: list.Alarms[0].Alarm}); err != nil {
		t.Fatal(err)
	}
	s.put(t, "again", "x")
}

func TestLockAndElection(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	ctx := t.Context()
	lock, election := lockpb.NewLockClient(s.conn), electionpb.NewElectionClient(s.conn)
	first, err := lock.Lock(ctx, &lockpb.LockRequest{Name: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := lock.Lock(ctx, &lockpb.LockRequest{Name: []byte("l")})
		second <- err
	}()
	waitForKeys(t, s, "l/", 2)
	select {
	case err := <-second:
		t.Fatalf("two hold the lock: %v", err)
	default:
	}
	if _, err := lock.Unlock(ctx, &lockpb.UnlockRequest{Key: first.Key}); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	c, err := election.Campaign(ctx, &electionpb.CampaignRequest{Name: []byte("e"), Value: []byte("me")})
	if err != nil {
		t.Fatal(err)
	}
	observe, err := election.Observe(ctx, &electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := observe.Recv(); err != nil || string(r.Kv.Value) != "me" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := election.Proclaim(ctx, &electionpb.ProclaimRequest{Leader: c.Leader, Value: []byte("still me")}); err != nil {
		t.Fatal(err)
	}
	if r, err := observe.Recv(); err != nil || string(r.Kv.Value) != "still me" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := election.Resign(ctx, &electionpb.ResignRequest{Leader: c.Leader}); err != nil {
		t.Fatal(err)
	}
	if _, err := election.Leader(ctx, &electionpb.LeaderRequest{Name: []byte("e")}); err == nil {
		t.Error("somebody leads who resigned")
	}
}

func waitForKeys(t *testing.T, s *served, prefix string, n int64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r, err := s.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(prefix[:len(prefix)-1] + "0"), CountOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if r.Count == n {
			return
		}
	}
	t.Fatalf("there were never %d keys below %s", n, prefix)
}

func TestRangeStreamIsOneRevisionInPieces(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	for i := range 50 {
		s.put(t, fmt.Sprintf("k%02d", i), "v")
	}
	stream, err := s.kv.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 40})
	if err != nil {
		t.Fatal(err)
	}
	var n, pieces int
	var last *pb.RangeResponse
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		pieces, n, last = pieces+1, n+len(r.RangeResponse.Kvs), r.RangeResponse
	}
	if n != 40 || pieces < 2 || last.Count != 50 || !last.More || last.Header.GetRevision() != 51 {
		t.Errorf("%d keys in %d pieces, then %v", n, pieces, last)
	}
}

func TestHTTPOnTheSamePort(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	s.put(t, "k", "v")
	for path, want := range map[string]string{
		"/health":          `{"health":"true","reason":""}`,
		"/version":         `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`,
		"/livez":           "ok\n",
		"/readyz?verbose":  "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\n[+]serializable_read ok\nok\n",
		"/livez/nonsense?": "404 page not found\n",
	} {
		resp, err := http.Get("http://" + s.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", path, body, err)
		}
	}
	resp, err := http.Post("http://"+s.addr+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"aw=="}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct {
		Kvs []struct{ Value []byte }
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || len(out.Kvs) != 1 || string(out.Kvs[0].Value) != "v" {
		t.Errorf("%v, %v", out, err)
	}
	bad, err := http.Post("http://"+s.addr+"/v3/kv/put", "application/json", strings.NewReader(`{}`))
	if err != nil || bad.StatusCode != http.StatusBadRequest {
		t.Errorf("a put without a key: %v, %v", bad, err)
	}
	h, err := healthpb.NewHealthClient(s.conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || h.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", h, err)
	}
}

func TestLeases(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	ctx := t.Context()
	g, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60, ID: 42})
	if err != nil || g.ID != 42 {
		t.Fatalf("%v, %v", g, err)
	}
	if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60, ID: 42}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second lease 42: %v", err)
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 42}); err != nil {
		t.Fatal(err)
	}
	ka, err := s.lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[int64]int64{42: 60, 43: 0} {
		if err := ka.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		if r, err := ka.Recv(); err != nil || r.ID != id || r.TTL != want {
			t.Errorf("keep alive %d: %v, %v", id, r, err)
		}
	}
	ttl, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 42, Keys: true})
	if err != nil || ttl.GrantedTTL != 60 || len(ttl.Keys) != 1 {
		t.Errorf("%v, %v", ttl, err)
	}
	if r, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 43}); err != nil || r.TTL != -1 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 42}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err != nil || r.Count != 0 {
		t.Errorf("a key outlived its lease: %v, %v", r, err)
	}
}

func secretFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("a secret of some length, as it should be"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCloseWithSilentClient: a client that has said nothing yet holds nobody up.
func TestCloseWithSilentClient(t *testing.T) {
	s := serve(t, raftstore.Config{}, etcdapi.Config{})
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.put(t, "k", "v") // on a connection that was accepted after that one
	closed := make(chan error, 1)
	go func() { closed <- s.srv.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the server waits for a client that says nothing")
	}
}
