package mvcc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"edged/raftstore/auth"
)

// Errors that alarms answer requests with.
var (
	ErrNoSpace = errors.New("etcdserver: mvcc: database space exceeded")
	ErrCorrupt = errors.New("etcdserver: corrupt cluster")
)

// caller is who an entry was proposed for.
func caller(h *pb.RequestHeader) auth.Caller {
	return auth.Caller{User: h.GetUsername(), Revision: h.GetAuthRevision()}
}

// refused tells whether an alarm forbids a request.
func (db *DB) refused(req *pb.InternalRaftRequest) error {
	if len(db.alarms[pb.AlarmType_CORRUPT]) > 0 &&
		(req.Put != nil || req.DeleteRange != nil || req.Txn != nil || req.Compaction != nil || req.LeaseGrant != nil || req.LeaseRevoke != nil) {
		return ErrCorrupt
	}
	if len(db.alarms[pb.AlarmType_NOSPACE]) > 0 && (req.Put != nil || req.LeaseGrant != nil || req.Txn != nil && Cost(req.Txn) > 0) {
		return ErrNoSpace
	}
	return nil
}

// keyOverhead is what a put takes beside key and value, by etcd's reckoning.
const keyOverhead = 256

// Cost is about how many bytes a request adds, 0 for one that adds none.
func Cost(req proto.Message) int {
	switch r := req.(type) {
	case *pb.PutRequest:
		return keyOverhead + len(r.Key) + len(r.Value)
	case *pb.LeaseGrantRequest:
		return 64
	case *pb.TxnRequest:
		return max(costOf(r.Success), costOf(r.Failure))
	}
	return 0
}

func costOf(ops []*pb.RequestOp) (n int) {
	for _, op := range ops {
		switch {
		case op.GetRequestPut() != nil:
			n += Cost(op.GetRequestPut())
		case op.GetRequestTxn() != nil:
			n += Cost(op.GetRequestTxn())
		}
	}
	return n
}

func (db *DB) setAlarm(m *pb.AlarmMember, on bool) {
	if db.alarms[m.Alarm] == nil {
		db.alarms[m.Alarm] = map[uint64]bool{}
	}
	if on {
		db.alarms[m.Alarm][m.MemberID] = true
	} else {
		delete(db.alarms[m.Alarm], m.MemberID)
	}
}

// Alarms returns the alarms of a kind, or of every kind for NONE.
func (db *DB) Alarms(kind pb.AlarmType) []*pb.AlarmMember {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.listAlarms(kind)
}

func (db *DB) listAlarms(kind pb.AlarmType) []*pb.AlarmMember {
	var out []*pb.AlarmMember
	for k, members := range db.alarms {
		for id := range members {
			if kind == pb.AlarmType_NONE || kind == k {
				out = append(out, &pb.AlarmMember{MemberID: id, Alarm: k})
			}
		}
	}
	slices.SortFunc(out, func(a, b *pb.AlarmMember) int {
		if a.Alarm != b.Alarm {
			return int(a.Alarm - b.Alarm)
		}
		if a.MemberID < b.MemberID {
			return -1
		}
		return 1
	})
	return out
}

func (db *DB) alarm(req *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	resp := &pb.AlarmResponse{Header: db.header()}
	m := &pb.AlarmMember{MemberID: req.MemberID, Alarm: req.Alarm}
	was := db.alarms[m.Alarm][m.MemberID]
	switch req.Action {
	case pb.AlarmRequest_GET:
		resp.Alarms = db.listAlarms(req.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if m.Alarm == pb.AlarmType_NONE {
			break
		}
		if !was {
			db.setAlarm(m, true)
			db.setRow(AlarmBucket, string(mustMarshal(m)), []byte{})
		}
		resp.Alarms = append(resp.Alarms, m)
	case pb.AlarmRequest_DEACTIVATE:
		if was {
			db.setAlarm(m, false)
			db.setRow(AlarmBucket, string(mustMarshal(m)), nil)
			resp.Alarms = append(resp.Alarms, m)
		}
	}
	return resp, nil
}

func (db *DB) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: db.revision} }

func (db *DB) setDowngrade(req *membershippb.DowngradeInfoSetRequest) error {
	row, err := json.Marshal(Downgrade{Target: req.Ver, Enabled: req.Enabled})
	if err != nil {
		return fmt.Errorf("keep the downgrade: %w", err)
	}
	db.setRow(ClusterBucket, "downgrade", row)
	return nil
}

// Downgrade is a wish of the operator to go back to an older version.
type Downgrade struct {
	Target  string `json:"target-version"`
	Enabled bool   `json:"enabled"`
}

// Downgrade returns the operator's wish.
func (db *DB) Downgrade() Downgrade {
	var d Downgrade
	if row := db.Rows(ClusterBucket)["downgrade"]; row != nil {
		if err := json.Unmarshal(row, &d); err != nil {
			return Downgrade{}
		}
	}
	return d
}

// applyAuth carries out what concerns users, or nothing: entries of a newer
// version may concern neither keys nor users.
func (db *DB) applyAuth(a Applied, by auth.Caller, req *pb.InternalRaftRequest) (proto.Message, error) {
	resp, changed, handled, err := db.auth.Apply(by, req)
	if !handled || err != nil {
		return nil, err
	}
	if changed {
		db.saveAuth()
	}
	db.tellTokens(a, req, resp)
	if r, ok := resp.(interface{ GetHeader() *pb.ResponseHeader }); ok && r.GetHeader() == nil {
		setHeader(resp, db.header())
	}
	return resp, nil
}

func (db *DB) tellTokens(a Applied, req *pb.InternalRaftRequest, resp proto.Message) {
	if r := req.Authenticate; r != nil {
		token := auth.Name(r.SimpleToken, a.Index)
		resp.(*pb.AuthenticateResponse).Token = token
		if db.authenticated != nil {
			db.authenticated(token, r.Name)
		}
		db.signal() // a caller with this token may be waiting for this entry
		return
	}
	if db.authenticated == nil {
		return
	}
	switch {
	case req.AuthDisable != nil:
		db.authenticated("", "")
	case req.AuthUserDelete != nil:
		db.authenticated("", req.AuthUserDelete.Name)
	case req.AuthUserChangePassword != nil:
		db.authenticated("", req.AuthUserChangePassword.Name)
	}
}

func setHeader(m proto.Message, h *pb.ResponseHeader) {
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName("header"); f != nil {
		r.Set(f, protoreflect.ValueOfMessage(h.ProtoReflect()))
	}
}

// permitPut is what etcd demands of a put: the key, the keys of the lease that
// it joins, and to read what it replaces if that is asked for.
func (db *DB) permitPut(by auth.Caller, req *pb.PutRequest) error {
	if !db.auth.Enabled() {
		return nil
	}
	if err := db.auth.Write(by, req.Key, nil); err != nil {
		return err
	}
	if err := db.permitLease(by, req.Lease); err != nil {
		return err
	}
	if req.PrevKv {
		return db.auth.Read(by, req.Key, nil)
	}
	return nil
}

func (db *DB) permitDelete(by auth.Caller, req *pb.DeleteRangeRequest) error {
	if err := db.auth.Write(by, req.Key, req.RangeEnd); err != nil || !req.PrevKv {
		return err
	}
	return db.auth.Read(by, req.Key, req.RangeEnd)
}

// permitLease demands that the caller may write every key of a lease.
func (db *DB) permitLease(by auth.Caller, id int64) error {
	l := db.leases[id]
	if l == nil || db.auth.Admin(by) == nil {
		return nil
	}
	for k := range l.keys {
		if err := db.auth.Write(by, []byte(k), nil); err != nil {
			return err
		}
	}
	return nil
}

func (db *DB) permitTxn(by auth.Caller, req *pb.TxnRequest) error {
	if !db.auth.Enabled() {
		return nil
	}
	for _, c := range req.Compare {
		if err := db.auth.Read(by, c.Key, c.RangeEnd); err != nil {
			return err
		}
	}
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			var err error
			switch r := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				err = db.auth.Read(by, r.RequestRange.GetKey(), r.RequestRange.GetRangeEnd())
			case *pb.RequestOp_RequestPut:
				err = db.permitPut(by, r.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				err = db.permitDelete(by, r.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				err = db.permitTxn(by, r.RequestTxn)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Permit asks the users' state a question. The state must not be kept.
func (db *DB) Permit(ask func(*auth.State) error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return ask(db.auth)
}

// PermitLease tells whether the caller may write, or only read, every key of a
// lease.
func (db *DB) PermitLease(by auth.Caller, id int64, write bool) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if write {
		return db.permitLease(by, id)
	}
	l := db.leases[id]
	if l == nil || db.auth.Admin(by) == nil {
		return nil
	}
	for k := range l.keys {
		if err := db.auth.Read(by, []byte(k), nil); err != nil {
			return err
		}
	}
	return nil
}
