package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/etcdapi/electionpb"
	"edged/raftstore/etcdapi/lockpb"
)

// gatewayKey marks a request that came as JSON: its certificate is not a user's.
const gatewayKey = "grpcgateway-accept"

// routes are etcd's paths below /v3/ and the methods behind them.
var routes = map[string]string{
	"kv/range": "KV/Range", "kv/put": "KV/Put", "kv/deleterange": "KV/DeleteRange", "kv/txn": "KV/Txn",
	"kv/compaction": "KV/Compact", "kv/rangestream": "KV/RangeStream",
	"watch":       "Watch/Watch",
	"lease/grant": "Lease/LeaseGrant", "lease/revoke": "Lease/LeaseRevoke", "kv/lease/revoke": "Lease/LeaseRevoke",
	"lease/keepalive": "Lease/LeaseKeepAlive", "lease/timetolive": "Lease/LeaseTimeToLive", "kv/lease/timetolive": "Lease/LeaseTimeToLive",
	"lease/leases": "Lease/LeaseLeases", "kv/lease/leases": "Lease/LeaseLeases",
	"cluster/member/add": "Cluster/MemberAdd", "cluster/member/remove": "Cluster/MemberRemove", "cluster/member/update": "Cluster/MemberUpdate",
	"cluster/member/list": "Cluster/MemberList", "cluster/member/promote": "Cluster/MemberPromote",
	"maintenance/alarm": "Maintenance/Alarm", "maintenance/status": "Maintenance/Status", "maintenance/defragment": "Maintenance/Defragment",
	"maintenance/hash": "Maintenance/Hash", "maintenance/hashkv": "Maintenance/HashKV", "maintenance/snapshot": "Maintenance/Snapshot",
	"maintenance/transfer-leadership": "Maintenance/MoveLeader", "maintenance/downgrade": "Maintenance/Downgrade",
	"auth/enable": "Auth/AuthEnable", "auth/disable": "Auth/AuthDisable", "auth/status": "Auth/AuthStatus", "auth/authenticate": "Auth/Authenticate",
	"auth/user/add": "Auth/UserAdd", "auth/user/get": "Auth/UserGet", "auth/user/list": "Auth/UserList", "auth/user/delete": "Auth/UserDelete",
	"auth/user/changepw": "Auth/UserChangePassword", "auth/user/grant": "Auth/UserGrantRole", "auth/user/revoke": "Auth/UserRevokeRole",
	"auth/role/add": "Auth/RoleAdd", "auth/role/get": "Auth/RoleGet", "auth/role/list": "Auth/RoleList", "auth/role/delete": "Auth/RoleDelete",
	"auth/role/grant": "Auth/RoleGrantPermission", "auth/role/revoke": "Auth/RoleRevokePermission",
	"lock/lock": "Lock/Lock", "lock/unlock": "Lock/Unlock",
	"election/campaign": "Election/Campaign", "election/proclaim": "Election/Proclaim", "election/leader": "Election/Leader",
	"election/observe": "Election/Observe", "election/resign": "Election/Resign",
}

// jsonBodies is how etcd's gateway writes: fields by their protobuf names, those
// without a value left out.
var jsonBodies = protojson.MarshalOptions{UseProtoNames: true}

// gateway serves gRPC methods to clients that speak JSON over HTTP/1.
func (s *Server) gateway() http.Handler {
	mux := http.NewServeMux()
	services := []struct {
		desc *grpc.ServiceDesc
		srv  any
	}{
		{&pb.KV_ServiceDesc, kvService{Server: s}}, {&pb.Watch_ServiceDesc, watchService{Server: s}},
		{&pb.Lease_ServiceDesc, leaseService{Server: s}}, {&pb.Cluster_ServiceDesc, clusterService{Server: s}},
		{&pb.Maintenance_ServiceDesc, maintenanceService{Server: s}}, {&pb.Auth_ServiceDesc, authService{Server: s}},
		{&lockpb.Lock_ServiceDesc, lockService{Server: s}}, {&electionpb.Election_ServiceDesc, electionService{Server: s}},
	}
	methods := map[string]http.HandlerFunc{}
	for _, svc := range services {
		short := svc.desc.ServiceName
		for i := len(short) - 1; i >= 0; i-- {
			if short[i] == '.' {
				short = short[i+1:]
				break
			}
		}
		for _, m := range svc.desc.Methods {
			methods[short+"/"+m.MethodName] = s.unaryJSON(svc.srv, m.Handler)
		}
		for _, m := range svc.desc.Streams {
			info := &grpc.StreamServerInfo{FullMethod: "/" + svc.desc.ServiceName + "/" + m.StreamName}
			methods[short+"/"+m.StreamName] = s.streamJSON(svc.srv, m.Handler, info)
		}
	}
	for path, method := range routes {
		handle := methods[method]
		mux.HandleFunc("/v3/"+path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				writeStatus(w, status.Error(codes.Unimplemented, "Method Not Allowed"))
				return
			}
			handle(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeStatus(w, status.Error(codes.NotFound, "Not Found"))
	})
	return mux
}

// asCall makes the context of a call of an HTTP request.
func asCall(r *http.Request) context.Context {
	md := metadata.Pairs(gatewayKey, "application/json")
	if a := r.Header.Get("Authorization"); a != "" {
		md.Set("authorization", a)
	}
	ctx := metadata.NewIncomingContext(r.Context(), md)
	p := &peer.Peer{}
	if r.TLS != nil {
		p.AuthInfo = credentials.TLSInfo{State: *r.TLS}
	}
	return peer.NewContext(ctx, p)
}

func (s *Server) readJSON(r io.Reader, into any) error {
	m, ok := into.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "no message: %T", into)
	}
	// What follows the first value is nobody's, as in etcd.
	body, err := newDecoder(r, s.store.MaxRequestBytes()+sendOverhead).next()
	if errors.Is(err, io.EOF) {
		return err
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func (s *Server) unaryJSON(srv any, handle grpc.MethodHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		resp, err := handle(srv, asCall(r), func(into any) error {
			if err := s.readJSON(r.Body, into); !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}, s.unary)
		if err != nil {
			writeStatus(w, err)
			return
		}
		data, err := jsonBodies.Marshal(resp.(proto.Message))
		if err != nil {
			writeStatus(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data) // the client is gone: nobody to tell
	}
}

// httpCodes are what gRPC's codes are over HTTP.
var httpCodes = map[codes.Code]int{
	codes.Canceled: 499, codes.InvalidArgument: 400, codes.DeadlineExceeded: 504, codes.NotFound: 404,
	codes.AlreadyExists: 409, codes.PermissionDenied: 403, codes.Unauthenticated: 401, codes.ResourceExhausted: 429,
	codes.FailedPrecondition: 400, codes.Aborted: 409, codes.OutOfRange: 400, codes.Unimplemented: 501, codes.Unavailable: 503,
}

func writeStatus(w http.ResponseWriter, err error) {
	st := status.Convert(toStatus(err))
	code := httpCodes[st.Code()]
	if code == 0 {
		code = http.StatusInternalServerError
	}
	data, err := jsonBodies.Marshal(st.Proto())
	if err != nil {
		data = fmt.Appendf(nil, "{%q:%q}", "message", st.Message())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // the client is gone: nobody to tell
}

// streamJSON serves a stream: one message in, one line per message out.
func (s *Server) streamJSON(srv any, handle grpc.StreamHandler, info *grpc.StreamServerInfo) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// A stream's requests and responses pass each other.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			s.log.Debug("a stream over HTTP/1 is one-way", "err", err)
		}
		js := &jsonStream{s: s, ctx: asCall(r), r: r, w: w}
		err := s.stream(srv, js, info, handle)
		if err == nil {
			return
		}
		if !js.sent {
			writeStatus(w, err)
			return
		}
		if data, merr := jsonBodies.Marshal(status.Convert(toStatus(err)).Proto()); merr == nil {
			fmt.Fprintf(w, `{"error":%s}`+"\n", data)
		}
	}
}

// jsonStream is a stream whose requests are the JSON values of a body.
type jsonStream struct {
	s    *Server
	ctx  context.Context
	r    *http.Request
	w    http.ResponseWriter
	dec  *decoder
	sent bool
}

func (j *jsonStream) Context() context.Context     { return j.ctx }
func (j *jsonStream) SetHeader(metadata.MD) error  { return nil }
func (j *jsonStream) SendHeader(metadata.MD) error { return nil }
func (j *jsonStream) SetTrailer(metadata.MD)       {}

func (j *jsonStream) SendMsg(m any) error {
	if s, ok := m.(*sharedResponse); ok {
		m = s.response()
	}
	data, err := jsonBodies.Marshal(m.(proto.Message))
	if err != nil {
		return err
	}
	if !j.sent {
		j.w.Header().Set("Content-Type", "application/json")
		j.sent = true
	}
	if _, err := fmt.Fprintf(j.w, `{"result":%s}`+"\n", data); err != nil {
		return err
	}
	return http.NewResponseController(j.w).Flush()
}

func (j *jsonStream) RecvMsg(m any) error {
	if j.dec == nil {
		j.dec = newDecoder(j.r.Body, j.s.store.MaxRequestBytes()+sendOverhead)
	}
	raw, err := j.dec.next()
	if err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m.(proto.Message)); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}
