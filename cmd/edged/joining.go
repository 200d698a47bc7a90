package main

import (
	"context"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/cluster/join"
)

const (
	// joiningPrefix is where the names of devices that join are kept with where those
	// are. The membership knows a name only when its device has told it.
	joiningPrefix = "/edged/joining/"
	// joiningSeconds is how long a name is kept: a device with a slow card needs a
	// minute until its Node is ready, and another that got the name by mistake has to
	// wait as long.
	joiningSeconds = 120
)

// nameIsFree refuses a device whose name another asked for just now.
func (d *device) nameIsFree(ctx context.Context, req join.Request) error {
	resp, err := d.store.Range(ctx, &pb.RangeRequest{Key: []byte(joiningPrefix + req.NodeName)})
	if err != nil {
		return err
	}
	return refuseName(req, resp)
}

func refuseName(req join.Request, claims *pb.RangeResponse) error {
	for _, kv := range claims.Kvs {
		if string(kv.Value) != strings.Join(req.PeerURLs, ",") {
			return &join.RequestError{Reason: fmt.Sprintf("a device %q at %s joined just now: give this one another --node-name, or wait for %d s if it is the same", req.NodeName, kv.Value, joiningSeconds)}
		}
	}
	return nil
}

// claimName keeps a name for the first of those that ask for it at once, of whichever
// devices.
func (d *device) claimName(ctx context.Context, req join.Request) error {
	lease, err := d.store.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: joiningSeconds})
	if err != nil {
		return err
	}
	key := []byte(joiningPrefix + req.NodeName)
	resp, err := d.store.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte(strings.Join(req.PeerURLs, ",")), Lease: lease.ID}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
	})
	if err != nil || resp.Succeeded {
		return err
	}
	if _, err := d.store.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: lease.ID}); err != nil {
		return err
	}
	return refuseName(req, resp.Responses[0].GetResponseRange())
}

// isThere says whether a member answers where it was last. Another may have its address.
func (d *device) isThere(ctx context.Context, m *pb.Member) bool {
	s := d.askDevice(ctx, m)
	return s.Reached && (s.Node == m.Name || s.Node == "") // an older one does not tell
}
