package etcdapi

import (
	"bytes"
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

type kvService struct {
	pb.UnimplementedKVServer
	*Server
}

func (s kvService) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	return s.store.Range(ctx, req)
}

func (s kvService) Put(ctx context.Context, req *pb.PutRequest) (*pb.PutResponse, error) {
	return s.store.Put(ctx, req)
}

func (s kvService) DeleteRange(ctx context.Context, req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return s.store.DeleteRange(ctx, req)
}

func (s kvService) Txn(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	return s.store.Txn(ctx, req)
}

func (s kvService) Compact(ctx context.Context, req *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if err := s.store.PermitAdmin(ctx); err != nil {
		return nil, err
	}
	return s.store.Compact(ctx, req)
}

// firstChunk is how many keys the first message of a stream holds; the next ones
// hold about as much as a request may.
const firstChunk = 10

// RangeStream is Range in pieces, all of one revision.
func (s kvService) RangeStream(req *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	_, knownOrder := pb.RangeRequest_SortOrder_name[int32(req.SortOrder)]
	_, knownTarget := pb.RangeRequest_SortTarget_name[int32(req.SortTarget)]
	ordered := req.SortOrder == pb.RangeRequest_NONE || req.SortTarget == pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_ASCEND
	switch {
	case len(req.Key) > 0 && !(knownOrder && knownTarget):
		return rpctypes.ErrGRPCInvalidSortOption
	case len(req.Key) > 0 && !ordered:
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	case len(req.Key) > 0 && (req.MinModRevision != 0 || req.MaxModRevision != 0 || req.MinCreateRevision != 0 || req.MaxCreateRevision != 0):
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	ctx, err := s.identify(stream.Context())
	if err != nil {
		return err
	}
	if req.CountOnly {
		resp, err := s.store.Range(ctx, req)
		if err != nil {
			return err
		}
		return stream.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Header: resp.Header, Count: resp.Count}})
	}
	return s.chunks(ctx, proto.CloneOf(req), stream)
}

func (s kvService) chunks(ctx context.Context, req *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	total := req.Limit
	if total == 0 {
		total = math.MaxInt64
	}
	var header *pb.ResponseHeader
	var sent int64
	for req.Limit = min(firstChunk, total); ; {
		resp, err := s.store.Range(ctx, req)
		if err != nil {
			return err
		}
		if header == nil {
			header = resp.Header
			if req.Revision == 0 {
				req.Revision = header.Revision
			}
			req.Serializable = true // the revision is there already
		}
		sent += int64(len(resp.Kvs))
		out := &pb.RangeResponse{Kvs: resp.Kvs}
		done := !resp.More || sent == total
		if done {
			out.Header, out.More = header, resp.More
			out.Count = sent + resp.Count - int64(len(resp.Kvs))
		}
		size := proto.Size(out)
		if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: out}); err != nil || done {
			return err
		}
		req.Key = append(bytes.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
		switch target := s.store.MaxRequestBytes(); {
		case size < target/2:
			req.Limit *= 2
		case size > target*2:
			req.Limit = max(req.Limit/2, 1)
		}
		req.Limit = min(req.Limit, total-sent)
	}
}
