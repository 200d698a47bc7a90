package mvcc

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// lease is what is replicated of a lease. remaining is the last checkpoint of
// the time left in seconds, 0 for none.
type lease struct {
	ttl, remaining int64
	keys           map[string]struct{}
}

// attach moves key to the lease id, or to none when id is 0.
func (db *DB) attach(key []byte, id int64) {
	old := db.attached[string(key)]
	if old == id {
		return
	}
	if l := db.leases[old]; l != nil {
		delete(l.keys, string(key))
	}
	if id == 0 {
		delete(db.attached, string(key))
		return
	}
	db.attached[string(key)] = id
	if l := db.leases[id]; l != nil {
		l.keys[string(key)] = struct{}{}
	}
}

func (db *DB) grant(req *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if db.leases[req.ID] != nil {
		return nil, ErrLeaseExists
	}
	db.leases[req.ID] = &lease{ttl: req.TTL, keys: map[string]struct{}{}}
	db.dirty.leases[req.ID] = true
	return &pb.LeaseGrantResponse{Header: &pb.ResponseHeader{Revision: db.revision}, ID: req.ID, TTL: req.TTL}, nil
}

// revoke deletes the lease and, in one transaction, its keys in their order.
func (db *DB) revoke(req *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	l := db.leases[req.ID]
	if l == nil {
		return nil, ErrLeaseNotFound
	}
	keys := make([]string, 0, len(l.keys))
	for k := range l.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	t := db.begin()
	for _, k := range keys {
		if _, err := t.deleteRange(&pb.DeleteRangeRequest{Key: []byte(k)}); err != nil {
			return nil, err
		}
	}
	delete(db.leases, req.ID)
	db.dirty.leases[req.ID] = true
	t.end()
	return &pb.LeaseRevokeResponse{Header: &pb.ResponseHeader{Revision: db.revision}}, nil
}

func (db *DB) checkpoint(req *pb.LeaseCheckpointRequest) (*pb.LeaseCheckpointResponse, error) {
	for _, c := range req.Checkpoints {
		if l := db.leases[c.ID]; l != nil {
			l.remaining = c.Remaining_TTL
			db.dirty.leases[c.ID] = true
		}
	}
	return &pb.LeaseCheckpointResponse{Header: &pb.ResponseHeader{Revision: db.revision}}, nil
}

// Lease describes a lease. Seconds are what a leader that takes over gives it.
type Lease struct {
	ID, TTL, Seconds int64
	Keys             [][]byte
}

// Lease returns one lease, with its keys in order if asked for.
func (db *DB) Lease(id int64, keys bool) (Lease, bool) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	l := db.leases[id]
	if l == nil {
		return Lease{}, false
	}
	return l.describe(id, keys), true
}

// Leases returns all leases, without their keys, by id.
func (db *DB) Leases() []Lease {
	db.mu.RLock()
	defer db.mu.RUnlock()
	out := make([]Lease, 0, len(db.leases))
	for id, l := range db.leases {
		out = append(out, l.describe(id, false))
	}
	slices.SortFunc(out, func(a, b Lease) int { return int(min(max(a.ID-b.ID, -1), 1)) })
	return out
}

func (l *lease) describe(id int64, keys bool) Lease {
	d := Lease{ID: id, TTL: l.ttl, Seconds: l.ttl}
	if l.remaining > 0 {
		d.Seconds = l.remaining
	}
	if keys {
		for k := range l.keys {
			d.Keys = append(d.Keys, []byte(k))
		}
		slices.SortFunc(d.Keys, slices.Compare)
	}
	return d
}
