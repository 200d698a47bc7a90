package etcdapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"edged/raftstore"
	"edged/raftstore/mvcc"
)

const (
	// Version is the release of etcd whose API this is.
	Version = "3.7.3"
	// ClusterVersion is its minor release: what all members understand.
	ClusterVersion = "3.7"
	// clusterVersion is that as etcd's API tells it.
	clusterVersion = "3.7.0"
	// defaultQuota is what etcd tells when there is none.
	defaultQuota = 2 << 30
	// snapshotChunk is the size of the pieces that a snapshot is sent in.
	snapshotChunk = 32 << 10
)

type maintenanceService struct {
	pb.UnimplementedMaintenanceServer
	*Server
}

func (s maintenanceService) Alarm(ctx context.Context, req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	permit := s.store.PermitAdmin
	if req.Action == pb.AlarmRequest_GET {
		permit = s.store.PermitUser
	}
	if err := permit(ctx); err != nil {
		return nil, err
	}
	return s.store.Alarm(ctx, req)
}

func (s maintenanceService) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := s.store.PermitUser(ctx); err != nil {
		return nil, err
	}
	st, down := s.store.Status(), s.store.Downgrade()
	resp := &pb.StatusResponse{
		Header: s.header(), Version: Version, StorageVersion: clusterVersion, DbSize: st.SizeBytes, DbSizeInUse: st.SizeBytesUsed,
		Leader: st.Leader, RaftIndex: st.CommitIndex, RaftTerm: st.Term, RaftAppliedIndex: st.AppliedIndex,
		IsLearner: st.IsLearner, DbSizeQuota: s.store.Quota(),
		DowngradeInfo: &pb.DowngradeInfo{Enabled: down.Enabled, TargetVersion: down.Target},
	}
	if resp.DbSizeQuota == 0 {
		resp.DbSizeQuota = defaultQuota
	}
	if st.Leader == 0 {
		resp.Errors = append(resp.Errors, raftstore.ErrNoLeader.Error())
	}
	for _, a := range s.store.Alarms() {
		resp.Errors = append(resp.Errors, alarmText(a))
	}
	return resp, nil
}

// alarmText is the alarm as etcd's operators know it; protobuf's own text has spaces by
// chance, another number of them in each build.
func alarmText(a *pb.AlarmMember) string {
	if a.MemberID == 0 {
		return "alarm:" + a.Alarm.String()
	}
	return fmt.Sprintf("memberID:%d alarm:%s", a.MemberID, a.Alarm)
}

func (s maintenanceService) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	if s.cfg.NotServingOnDefrag {
		s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		defer s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	}
	return &pb.DefragmentResponse{}, s.store.Defragment()
}

func (s maintenanceService) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	h, rev, err := s.store.Hash()
	if err != nil {
		return nil, err
	}
	resp := &pb.HashResponse{Header: s.header(), Hash: h}
	resp.Header.Revision = rev
	return resp, nil
}

func (s maintenanceService) HashKV(ctx context.Context, req *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	h, err := s.store.HashKV(req.Revision)
	if err != nil {
		return nil, err
	}
	resp := &pb.HashKVResponse{Header: s.header(), Hash: h.Hash, CompactRevision: h.Compacted, HashRevision: h.Revision}
	resp.Header.Revision = h.Current
	return resp, nil
}

func (s maintenanceService) MoveLeader(ctx context.Context, req *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.MoveLeader(ctx, req)
}

// Snapshot sends the state's file and the SHA-256 of it.
func (s maintenanceService) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	ctx, err := s.identify(stream.Context())
	if err != nil {
		return err
	}
	if err := s.store.PermitAdmin(ctx); err != nil {
		return err
	}
	snap, err := s.store.Snapshot()
	if err != nil {
		return err
	}
	err = send(snap, stream)
	return errors.Join(err, snap.Close())
}

func send(snap *mvcc.Snapshot, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	sum := sha256.New()
	w := &chunks{stream: stream, left: snap.Size}
	if _, err := snap.WriteTo(io.MultiWriter(sum, w)); err != nil {
		return fmt.Errorf("send a snapshot: %w", err)
	}
	if err := w.flush(); err != nil {
		return fmt.Errorf("send a snapshot: %w", err)
	}
	return stream.Send(&pb.SnapshotResponse{Blob: sum.Sum(nil), Version: clusterVersion})
}

// chunks is a writer that sends what is written in pieces.
type chunks struct {
	stream grpc.ServerStreamingServer[pb.SnapshotResponse]
	left   int64
	buf    []byte
}

func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if c.buf == nil {
			c.buf = make([]byte, 0, snapshotChunk)
		}
		k := min(len(p), snapshotChunk-len(c.buf))
		c.buf, p = append(c.buf, p[:k]...), p[k:]
		if len(c.buf) == snapshotChunk {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush sends what is there; a message may outlive the call, so its bytes are
// never used again.
func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	c.left -= int64(len(c.buf))
	err := c.stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(c.left), Blob: c.buf, Version: clusterVersion})
	c.buf = nil
	return err
}

// Downgrade answers as etcd does when there is no older version to go to: the
// data of this program has one format.
func (s maintenanceService) Downgrade(ctx context.Context, req *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	resp := &pb.DowngradeResponse{Header: s.header(), Version: "3.7"}
	switch req.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
	case pb.DowngradeRequest_CANCEL:
		return resp, nil // also if there is none
	default:
		return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	parts := strings.Split(req.Version, ".")
	if len(parts) != 2 && len(parts) != 3 || slices.ContainsFunc(parts, func(p string) bool { return !number(p) }) {
		return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	if parts[0] != "3" || parts[1] != "6" {
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	if req.Action == pb.DowngradeRequest_ENABLE {
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	return resp, nil
}

func number(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
