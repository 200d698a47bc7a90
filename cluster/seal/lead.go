package seal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	// look is how often the leader of several devices looks whether one was
	// removed, or whether all can read what is sealed.
	look = 5 * time.Second
	// What is sealed anew goes in transactions of so many Secrets, and of so many
	// bytes if that is more than one, with a pause between: a page or two of flash
	// each, and clients that watch Secrets are not flooded.
	sweepSecrets = 16
	sweepBytes   = 256 << 10
	sweepPause   = 100 * time.Millisecond
)

// Cluster is what the leader knows of the others.
type Cluster struct {
	// Members are the ids of all members, as this device's replica has them.
	Members func(context.Context) ([]uint64, error)
	// Able says whether every member runs a daemon that reads sealed Secrets, and
	// will go on doing so. It is asked until it is true once in a cluster's life.
	Able func(context.Context) bool
}

// Lead is the leader's part, until ctx ends.
func (k *Keys) Lead(ctx context.Context, c Cluster) error {
	var told string
	var t term
	for ctx.Err() == nil {
		changed, pause, err := k.lead(ctx, c, &t)
		switch {
		case err == nil:
			told = ""
		case ctx.Err() == nil && err.Error() != told:
			told = err.Error()
			k.cfg.Logger.Warn("the cluster's Secrets are not sealed as they should be, trying again", "err", err)
		}
		var bell <-chan struct{}
		if t.swept != 0 {
			bell = k.stale
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-bell:
			t.swept = 0
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// term is what Lead remembers from one look to the next.
type term struct {
	// swept is the record's revision with which all Secrets were gone over; 0 if
	// they have to be: who led before may not have come to the end.
	swept int64
}

// lead is one look at the record, and what it asks for. Changed is closed when the
// record is another, and pause how long to wait without that.
func (k *Keys) lead(ctx context.Context, c Cluster, t *term) (changed <-chan struct{}, pause time.Duration, err error) {
	// The record first: who is in it was a member before.
	s, err := k.ensure(ctx)
	if err != nil {
		return nil, again, err
	}
	members, err := c.Members(ctx)
	if err != nil {
		return nil, again, err
	}
	pause = time.Hour // a device that comes changes the record
	if len(members) > 1 || len(s.rec.Devices) > 1 {
		pause = look
	}
	next := s.rec.clone()
	reason, err := k.revise(next, s, members)
	if err != nil {
		return s.changed, again, err
	}
	if reason == "" && !next.Sealing && next.complete(members) && c.Able(ctx) {
		next.Sealing = true
		reason = "Secrets are stored sealed from now on"
	}
	if reason != "" {
		won, err := k.save(ctx, next, s.revision)
		if err != nil {
			return s.changed, again, err
		}
		if won {
			k.cfg.Logger.Info(reason)
		}
		// Look at what is there now.
		_, err = k.cfg.Store.ReadIndex(ctx)
		return s.changed, 0, err
	}
	// A key that this device lacks, another one wraps for it.
	if _, have := s.ring[s.rec.Keys[0].Name]; !have || !s.rec.Sealing || t.swept == s.revision {
		return s.changed, pause, nil
	}
	if err := k.sweep(ctx, s); err != nil {
		return s.changed, again, err
	}
	t.swept = s.revision
	return s.changed, pause, nil
}

// revise changes the record to what the members ask for, and returns what to tell
// of it, "" if it is right as it is.
func (k *Keys) revise(rec *record, s state, members []uint64) (reason string, err error) {
	if gone := rec.remove(members, k.self.PublicKey); len(gone) > 0 {
		reason = "Secrets get another key: devices were removed: " + strings.Join(gone, ", ")
	}
	_, have := s.ring[rec.Keys[0].Name]
	switch {
	case reason == "" && have && s.now-rec.Keys[0].Born > mostRevisions:
		reason = "Secrets get another key: the one before was used for long"
	case !have && !slices.ContainsFunc(rec.Devices, func(d Device) bool { return rec.Keys[0].For[fingerprint(d.PublicKey)] != nil }):
		reason = "Secrets get another key: no device has the one before; what is sealed under it can be read after `edged secrets import`"
	}
	if reason != "" {
		return reason, rec.rotate(s)
	}
	wrapped, err := rec.wrapAll(s.ring)
	if wrapped {
		reason = "a device can read Secrets now"
	}
	return reason, err
}

// sweep seals under the first key what is not, and forgets the keys that nothing
// is sealed under. It begins anew when it finds that the record has changed.
func (k *Keys) sweep(ctx context.Context, s state) error {
	seal := &sealing{revision: s.revision, name: s.rec.Keys[0].Name}
	seal.aead, _ = k.cipher(seal.name)
	for {
		again, used, err := k.pass(ctx, seal)
		if err != nil {
			return err
		}
		if again {
			continue
		}
		return k.update(ctx, func(now state, rec *record) (bool, error) {
			if now.revision != s.revision {
				return false, nil // the next look sees why
			}
			before := len(rec.Keys)
			rec.Keys = slices.DeleteFunc(rec.Keys, func(w wrappedKey) bool { return w.Name != seal.name && !used[w.Name] })
			return len(rec.Keys) != before, nil
		})
	}
}

// pass goes once over all Secrets. It reports whether there was something to do,
// and the names of the keys that it left something under, because it has them not.
func (k *Keys) pass(ctx context.Context, seal *sealing) (found bool, used map[string]bool, err error) {
	used = map[string]bool{}
	key, end := []byte(prefix), []byte("/registry/secrets0") // '0' follows '/'
	for {
		resp, err := k.cfg.Store.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Limit: sweepSecrets, Serializable: true})
		if err != nil {
			return false, nil, fmt.Errorf("read Secrets to seal them anew: %w", err)
		}
		var todo []*mvccpb.KeyValue
		for _, kv := range resp.Kvs {
			name, ours := sealedBy(kv.Value)
			if name == seal.name || !ours {
				continue
			}
			plain := kv
			if name != "" {
				if plain = k.opened(ctx, kv); plain == kv {
					used[name] = true
					continue
				}
			}
			todo = append(todo, plain)
		}
		for len(todo) > 0 {
			n := batch(todo)
			if err := k.reseal(ctx, seal, todo[:n]); err != nil {
				return false, nil, err
			}
			todo, found = todo[n:], true
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return found, used, nil
		}
		key = append(slices.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
	}
}

// batch is how many of the Secrets go into one transaction.
func batch(kvs []*mvccpb.KeyValue) int {
	bytes := 0
	for i, kv := range kvs {
		if bytes += len(kv.Value); bytes > sweepBytes && i > 0 {
			return i
		}
	}
	return len(kvs)
}

// reseal writes the Secrets sealed; those that change meanwhile wait for the next
// pass.
func (k *Keys) reseal(ctx context.Context, seal *sealing, plain []*mvccpb.KeyValue) error {
	req := &pb.TxnRequest{Compare: []*pb.Compare{modRevision(RecordKey, seal.revision)}}
	for _, kv := range plain {
		req.Compare = append(req.Compare, modRevision(string(kv.Key), kv.ModRevision))
		req.Success = append(req.Success, put(kv.Key, seal.seal(kv.Key, kv.Value), kv.Lease))
	}
	resp, err := k.cfg.Store.Txn(ctx, req)
	if err != nil {
		return fmt.Errorf("seal Secrets anew: %w", err)
	}
	if !resp.Succeeded {
		s, err := k.load(ctx)
		if err != nil {
			return err
		}
		if s.revision != seal.revision {
			return fmt.Errorf("seal Secrets anew: the keys have changed meanwhile")
		}
		if len(plain) > 1 { // one of them has changed: the others need not wait
			half := len(plain) / 2
			if err := k.reseal(ctx, seal, plain[:half]); err != nil {
				return err
			}
			return k.reseal(ctx, seal, plain[half:])
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(sweepPause):
		return nil
	}
}
