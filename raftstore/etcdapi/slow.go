package etcdapi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// defaultSlowRequest is etcd's --warning-unary-request-duration.
const defaultSlowRequest = 300 * time.Millisecond

// tellSlow tells of a request that took long, or of every one when debugging, in
// etcd's words. Values are left out: they may be secrets.
func (s *Server) tellSlow(ctx context.Context, req, resp any, start time.Time) {
	took, level := time.Since(start), slog.LevelDebug
	if took > s.cfg.SlowRequest {
		level = slog.LevelWarn
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	remote := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		remote = p.Addr.String()
	}
	sizeOf := func(m any) int {
		if m, ok := m.(proto.Message); ok && m != nil {
			return proto.Size(m)
		}
		return -1
	}
	content, asked, answered := "", int64(-1), int64(-1)
	switch r := req.(type) {
	case *pb.RangeRequest:
		content, asked = r.String(), 0
		if resp, ok := resp.(*pb.RangeResponse); ok {
			answered = resp.GetCount()
		}
	case *pb.PutRequest:
		content, asked, answered = fmt.Sprintf("key:%q value_size:%d lease:%d", r.Key, len(r.Value), r.Lease), 1, 0
	case *pb.DeleteRangeRequest:
		content, asked = r.String(), 0
		if resp, ok := resp.(*pb.DeleteRangeResponse); ok {
			answered = resp.GetDeleted()
		}
	case *pb.TxnRequest:
		content, answered = fmt.Sprintf("compares:%d success:%d failure:%d", len(r.Compare), len(r.Success), len(r.Failure)), 0
		asked = int64(len(r.Failure))
		if resp, ok := resp.(*pb.TxnResponse); ok && resp.GetSucceeded() {
			asked = int64(len(r.Success))
		}
	}
	s.log.Log(ctx, level, "request stats", "start time", start.Format(time.RFC3339Nano), "time spent", took.String(), "remote", remote,
		"response type", fmt.Sprintf("%T", resp), "request count", asked, "request size", sizeOf(req),
		"response count", answered, "response size", sizeOf(resp), "request content", content)
}
