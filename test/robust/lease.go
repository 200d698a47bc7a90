package main

import (
	"slices"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
)

// leases tell keys that a client deleted from those that went with their lease, which
// watches show alike. The checkers conclude from a key that was deleted once, by a
// client, when that was: they must not take the end of a lease for it.
type leases struct {
	of       map[model.PutOptions]int64 // by key and value, as a client put them
	deleted  map[int64]bool             // revisions that clients were told of a deletion
	asked    []deletion
	granted  map[int64]bool
	attached map[string]int64
}

// deletion is one that a client asked for and was told nothing of.
type deletion struct {
	keys map[string]bool
	call int64 // as a report's times: nanoseconds since its start
}

func leasesOf(reports []report.ClientReport) *leases {
	l := &leases{of: map[model.PutOptions]int64{}, deleted: map[int64]bool{}, granted: map[int64]bool{}, attached: map[string]int64{}}
	for _, r := range reports {
		for _, op := range r.KeyValue {
			req, resp := op.Input.(model.EtcdRequest), op.Output.(model.MaybeEtcdResponse)
			if req.Type != model.Txn {
				continue
			}
			unanswered := deletion{keys: map[string]bool{}, call: op.Call}
			for _, o := range req.Txn.AllOperations() {
				switch {
				case o.Type == model.PutOperation && o.Put.LeaseID != 0:
					l.of[model.PutOptions{Key: o.Put.Key, Value: o.Put.Value}] = o.Put.LeaseID
				case o.Type == model.DeleteOperation && resp.Error == "":
					l.deleted[resp.Revision] = true
				case o.Type == model.DeleteOperation:
					unanswered.keys[o.Delete.Key] = true
				}
			}
			if len(unanswered.keys) > 0 {
				l.asked = append(l.asked, unanswered)
			}
		}
	}
	return l
}

// request makes of a revision's events the request that caused them, after the grant
// of a lease that it is the first to name. The first witness saw them at this time.
func (l *leases) request(rev int64, events []model.PersistedEvent, at int64) (out []model.EtcdRequest) {
	if id := l.ended(rev, events, at); id != 0 {
		for _, e := range events {
			delete(l.attached, e.Key)
		}
		return []model.EtcdRequest{{Type: model.LeaseRevoke, LeaseRevoke: &model.LeaseRevokeRequest{LeaseID: id}}}
	}
	txn := transaction(events)
	for i, e := range events {
		delete(l.attached, e.Key)
		id := l.of[model.PutOptions{Key: e.Key, Value: e.Value}]
		if e.Type != model.PutOperation || id == 0 {
			continue
		}
		l.attached[e.Key] = id
		txn.Txn.OperationsOnSuccess[i].Put.LeaseID = id
		if !l.granted[id] {
			l.granted[id] = true
			out = append(out, model.EtcdRequest{Type: model.LeaseGrant, LeaseGrant: &model.LeaseGrantRequest{LeaseID: id}})
		}
	}
	return append(out, txn)
}

// ended is the lease whose end a revision was: all of its keys were deleted, nothing
// else happened, and it cannot have been a client's doing. 0 is none. Where both can
// be, the checkers are told of the client's: it explains what was seen, and they leave
// open whether an end of the lease that nobody was told of took place.
func (l *leases) ended(rev int64, events []model.PersistedEvent, at int64) int64 {
	id := l.attached[events[0].Key]
	if id == 0 || l.deleted[rev] {
		return 0
	}
	for _, e := range events {
		if e.Type != model.DeleteOperation || l.attached[e.Key] != id {
			return 0
		}
	}
	if slices.ContainsFunc(l.asked, func(d deletion) bool { return d.call < at && d.covers(events) }) {
		return 0
	}
	n := 0
	for _, other := range l.attached {
		if other == id {
			n++
		}
	}
	if n != len(events) {
		return 0
	}
	return id
}

func (d deletion) covers(events []model.PersistedEvent) bool {
	return !slices.ContainsFunc(events, func(e model.PersistedEvent) bool { return !d.keys[e.Key] })
}
