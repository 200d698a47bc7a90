package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/cluster/identity"
)

// A witness votes and holds the state, so that two devices and it survive the
// loss of any one, and runs nothing else: no containers, no data path, no DNS and
// no Node. It serves the API. When it is elected it hands over to a device.

const (
	roleAuto    = "auto"
	roleWitness = "witness"

	// witnessPrefix is where the members that are witnesses are kept, by id: what
	// they are is not to be found out from what they lack.
	witnessPrefix = "/edged/witnesses/"
	witnessText   = "1\n"
	// tryHandOver is how often a witness that leads tries to find another leader,
	// heardLately how recently that must have been heard.
	tryHandOver = 200 * time.Millisecond
	heardLately = 2 * time.Second
)

var errWitness = errors.New("this device is a witness: it runs no containers and has no images")

// markKey is where what a member is lies below prefix.
func markKey(prefix string, member uint64) []byte {
	return fmt.Appendf(nil, "%s%016x", prefix, member)
}

// mayFound refuses a new witness that would be a cluster by itself: nobody there
// would run controllers, give tokens or let others vote.
func (d *device) mayFound() error {
	c := d.cfg
	if c.role != roleWitness || len(c.join) > 0 || c.bootstrapExpect > 1 {
		return nil
	}
	there, err := identity.Exists(d.pkiDir())
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	if !there {
		return misusef("--role witness: a witness founds no cluster by itself: give --join, or --discovery mdns with a --bootstrap-expect of 2 or more")
	}
	return nil
}

// runWitness is what a witness does instead of running Pods.
func (d *device) runWitness(ctx context.Context) error {
	if d.knowsItself() {
		d.log.Warn("this device was one that runs Pods and is a witness now: delete its Node when its Pods are to run elsewhere", "node", d.cfg.nodeName)
	}
	return d.tellRole(ctx)
}

// tellRole makes the cluster know whether this member is a witness. It writes
// when that changed.
func (d *device) tellRole(ctx context.Context) error {
	return d.tell(ctx, witnessPrefix, d.cfg.role == roleWitness)
}

// tell has the cluster know whether this member is one of those below prefix.
func (d *device) tell(ctx context.Context, prefix string, want bool) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.store.Ready():
	}
	key := markKey(prefix, d.store.MemberID())
	for told := ""; ; {
		there, err := d.store.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true, CountOnly: true})
		is := err == nil && there.Count > 0
		switch {
		case err != nil:
		case is == want:
			return nil
		case want:
			_, err = d.store.Put(ctx, &pb.PutRequest{Key: key, Value: []byte(witnessText)})
		default:
			_, err = d.store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			d.log.Warn("the cluster does not know yet what this device is, trying again", "key", prefix, "is", want, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.store.Done():
			return nil
		case <-time.After(registerAgain):
		}
	}
}

// witnesses are the members that are, as far as this device knows.
func (d *device) witnesses(ctx context.Context) (ids []uint64) {
	return d.told(ctx, witnessPrefix)
}

// witnessNames are what the witnesses are called.
func (d *device) witnessNames(ctx context.Context) (names []string) {
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return nil
	}
	ids := d.witnesses(ctx)
	for _, m := range list.Members {
		if slices.Contains(ids, m.ID) {
			names = append(names, m.Name)
		}
	}
	return names
}

// told are the members below prefix.
func (d *device) told(ctx context.Context, prefix string) (ids []uint64) {
	resp, err := d.store.Range(ctx, &pb.RangeRequest{
		Key: []byte(prefix), RangeEnd: []byte(strings.TrimSuffix(prefix, "/") + "0"), Serializable: true, KeysOnly: true,
	})
	if err != nil {
		return nil
	}
	for _, kv := range resp.Kvs {
		if id, err := strconv.ParseUint(strings.TrimPrefix(string(kv.Key), prefix), 16, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// forgetMarks is for a member that was removed.
func (d *device) forgetMarks(ctx context.Context, member uint64) error {
	return errors.Join(d.forget(ctx, witnessPrefix, member), d.forget(ctx, meteredPrefix, member))
}

func (d *device) forget(ctx context.Context, prefix string, member uint64) error {
	key := markKey(prefix, member)
	there, err := d.store.Range(ctx, &pb.RangeRequest{Key: key, Serializable: true, CountOnly: true})
	if err != nil || there.Count == 0 {
		return err
	}
	_, err = d.store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
	return err
}

// handOver gives leadership to the device that has most of the log, as soon as
// there is one: a witness runs no scheduler and no controllers.
func (d *device) handOver(ctx context.Context) {
	for told := ""; ctx.Err() == nil; {
		err := d.handOverOnce(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			d.log.Info("this witness leads until a device can", "reason", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tryHandOver):
		}
	}
}

func (d *device) handOverOnce(ctx context.Context) error {
	peers, err := d.store.Peers(ctx)
	if err != nil {
		return err
	}
	witness := map[uint64]bool{d.store.MemberID(): true}
	for _, id := range d.witnesses(ctx) {
		witness[id] = true
	}
	var to, match uint64
	for _, p := range peers {
		if !p.Learner && !witness[p.ID] && time.Since(p.LastHeard) < heardLately && p.Match >= match {
			to, match = p.ID, p.Match
		}
	}
	if to == 0 {
		return errors.New("no device that votes answers")
	}
	_, err = d.store.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to})
	return err
}
