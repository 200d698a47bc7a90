package seal

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/apiserver/registry"
)

const (
	// attempts bounds the tries of a change of the record that others win.
	attempts = 20
	// keyWait is how long a write waits for a key that this device is about to get.
	keyWait = 10 * time.Second
	// again is the pause after a failure: no quorum, a full disk.
	again = 5 * time.Second
	// leaderFirst is the time that the leader has to wrap for a device before
	// another does it, which has the key when the leader has not.
	leaderFirst = 3 * time.Second
)

// ErrNoKey says that this device has not got the key that seals.
var ErrNoKey = errors.New("this device has not been given the key of the cluster's Secrets (`edged secrets status`)")

// Config is what New needs.
type Config struct {
	Store registry.Store // this device's replica
	// Secret are 32 bytes that only this device has, the same at each start.
	Secret []byte
	// Member and Name are this device's.
	Member uint64
	Name   string
	Logger *slog.Logger
}

// Keys is this device's ring of data keys. Its methods may be called from any
// goroutine.
type Keys struct {
	cfg  Config
	pair hpke.PrivateKey
	self Device

	mu sync.Mutex
	// guarded by mu
	revision int64                  // of rec; 0 if there is none
	rec      *record                // never changed, only replaced
	ring     map[string]Key         // also keys that the record has forgotten: the store's history is sealed under them
	aeads    map[string]cipher.AEAD // of ring
	missed   map[string]bool        // names of keys that were needed and not there
	changed  chan struct{}          // closed when rec is replaced
	stale    chan struct{}          // one slot: something is stored that the first key has not sealed
}

// New returns a ring that knows what the store's record says, once it is asked.
func New(cfg Config) (*Keys, error) {
	pair, err := keyPair(cfg.Secret)
	if err != nil {
		return nil, fmt.Errorf("the device's key: %w", err)
	}
	return &Keys{
		cfg: cfg, pair: pair, self: Device{cfg.Member, cfg.Name, pair.PublicKey().Bytes()},
		ring: map[string]Key{}, aeads: map[string]cipher.AEAD{}, missed: map[string]bool{},
		changed: make(chan struct{}), stale: make(chan struct{}, 1),
	}, nil
}

// state is the record as this device's replica has it now, with the revision of
// its last change (0, and nil, if there is none) and the store's.
type state struct {
	rec           *record
	revision, now int64
	ring          map[string]Key // a copy
	changed       <-chan struct{}
}

func (k *Keys) load(ctx context.Context) (state, error) {
	resp, err := k.cfg.Store.Range(ctx, &pb.RangeRequest{Key: []byte(RecordKey), Serializable: true})
	if err != nil {
		return state{}, fmt.Errorf("read the record of data keys: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(resp.Kvs) > 0 && resp.Kvs[0].ModRevision > k.revision {
		if err := k.adopt(resp.Kvs[0].Value, resp.Kvs[0].ModRevision); err != nil {
			return state{}, err
		}
	}
	return state{k.rec, k.revision, resp.Header.Revision, maps.Clone(k.ring), k.changed}, nil
}

// adopt takes up a newer record. k.mu is held.
func (k *Keys) adopt(data []byte, revision int64) error {
	rec, err := parseRecord(data)
	if err != nil {
		return err
	}
	for _, w := range rec.Keys {
		if _, have := k.ring[w.Name]; have {
			continue
		}
		key, ok, err := w.unwrap(k.pair)
		if err != nil {
			// The others are of use all the same.
			k.cfg.Logger.Error("a key of the cluster's Secrets cannot be unwrapped", "err", err)
			continue
		}
		if !ok {
			continue
		}
		if err := k.add(key); err != nil {
			return err
		}
	}
	k.rec, k.revision = rec, revision
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// add puts a key into the ring. k.mu is held.
func (k *Keys) add(key Key) error {
	aead, err := key.aead()
	if err != nil {
		return err
	}
	k.ring[key.Name], k.aeads[key.Name] = key, aead
	return nil
}

// open opens a stored value; ok is false if it is not sealed, or cannot be opened.
func (k *Keys) open(ctx context.Context, key, value []byte) (plain []byte, ok bool) {
	name, ours := sealedBy(value)
	if !ours {
		return nil, false
	}
	aead, first := k.cipher(name)
	if aead == nil && name != "" {
		// The record is in the replica before anything is sealed under its keys.
		if _, err := k.load(ctx); err != nil {
			k.cfg.Logger.Error("a Secret cannot be opened", "key", string(key), "err", err)
		}
		if aead, first = k.cipher(name); aead == nil {
			k.mu.Lock()
			k.missed[name] = true
			k.mu.Unlock()
		}
	}
	if name == "" || aead != nil && name != first {
		k.wake()
	}
	if aead == nil {
		return nil, false
	}
	plain, err := openValue(aead, name, key, value)
	if err != nil {
		k.cfg.Logger.Error("a Secret cannot be opened", "key", string(key), "err", err)
		return nil, false
	}
	return plain, true
}

// cipher finds a key, and the name of the one that seals.
func (k *Keys) cipher(name string) (aead cipher.AEAD, first string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rec != nil {
		first = k.rec.Keys[0].Name
	}
	return k.aeads[name], first
}

// wake tells Lead that there is something to seal anew.
func (k *Keys) wake() {
	select {
	case k.stale <- struct{}{}:
	default:
	}
}

// missedCame says, once, that a key which was missed is there now.
func (k *Keys) missedCame(ctx context.Context) bool {
	if _, err := k.load(ctx); err != nil {
		k.cfg.Logger.Error("the keys of the cluster's Secrets", "err", err)
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	came := false
	for name := range k.missed {
		if k.aeads[name] != nil {
			delete(k.missed, name)
			came = true
		}
	}
	return came
}

// sealing is how Secrets are to be written as long as the record is of revision.
type sealing struct {
	revision int64
	name     string
	aead     cipher.AEAD // nil: in the clear
}

func (s *sealing) seal(key, plain []byte) []byte {
	if s.aead == nil {
		return plain
	}
	return sealValue(s.aead, s.name, key, plain)
}

// sealing waits a moment for a key that this device has yet to get.
func (k *Keys) sealing(ctx context.Context) (*sealing, error) {
	deadline := time.NewTimer(keyWait)
	defer deadline.Stop()
	for {
		s, err := k.ensure(ctx)
		if err != nil {
			return nil, err
		}
		if !s.rec.Sealing {
			return &sealing{revision: s.revision}, nil
		}
		first := s.rec.Keys[0].Name
		if aead, _ := k.cipher(first); aead != nil {
			return &sealing{s.revision, first, aead}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return nil, ErrNoKey
		case <-s.changed:
		}
	}
}

// ensure makes the record if there is none. A cluster that holds nothing yet seals
// from the beginning; others when Lead finds that everybody can read it.
func (k *Keys) ensure(ctx context.Context) (state, error) {
	for range attempts {
		s, err := k.load(ctx)
		if err != nil || s.rec != nil {
			return s, err
		}
		key := newKey()
		rec := &record{Version: recordVersion, Sealing: true, Devices: []Device{k.self}}
		rec.put(key, s.now)
		if _, err := rec.wrapAll(map[string]Key{key.Name: key}); err != nil {
			return state{}, err
		}
		if won, err := k.save(ctx, rec, 0, modRevision("/registry/namespaces/default", 0)); err != nil {
			return state{}, err
		} else if won {
			continue
		}
		rec.Sealing = false
		if _, err := k.save(ctx, rec, 0); err != nil {
			return state{}, err
		}
		// Another may have been first: this replica will know.
		if _, err := k.cfg.Store.ReadIndex(ctx); err != nil {
			return state{}, err
		}
	}
	return state{}, errors.New("the record of data keys: it was written and is not there")
}

// save writes the record if it still is of revision.
func (k *Keys) save(ctx context.Context, rec *record, revision int64, also ...*pb.Compare) (won bool, err error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return false, err
	}
	resp, err := k.cfg.Store.Txn(ctx, &pb.TxnRequest{
		Compare: append([]*pb.Compare{modRevision(RecordKey, revision)}, also...),
		Success: []*pb.RequestOp{put([]byte(RecordKey), data, 0)},
	})
	if err != nil {
		return false, fmt.Errorf("write the record of data keys: %w", err)
	}
	return resp.Succeeded, nil
}

// update changes the record by compare-and-swap. Change gets a copy and says
// whether it changed it.
func (k *Keys) update(ctx context.Context, change func(s state, rec *record) (bool, error)) error {
	for range attempts {
		s, err := k.ensure(ctx)
		if err != nil {
			return err
		}
		rec := s.rec.clone()
		if do, err := change(s, rec); err != nil || !do {
			return err
		}
		won, err := k.save(ctx, rec, s.revision)
		if err != nil || won {
			return err
		}
		if _, err := k.cfg.Store.ReadIndex(ctx); err != nil { // this replica has to catch up
			return err
		}
	}
	return errors.New("the record of data keys: others change it all the time")
}

// Register makes a device one that can read Secrets, and wraps for it what this
// device has. Who admits a device does so.
func (k *Keys) Register(ctx context.Context, d Device) error {
	return k.update(ctx, func(s state, rec *record) (bool, error) {
		known := rec.has(d)
		if !known {
			rec.register(d)
		}
		wrapped, err := rec.wrapAll(s.ring)
		return !known || wrapped, err
	})
}

// Sealing says whether Secrets are sealed, so that only who has a key can read
// them.
func (k *Keys) Sealing(ctx context.Context) (bool, error) {
	s, err := k.load(ctx)
	return err == nil && s.rec != nil && s.rec.Sealing, err
}

// Run makes this device known until ctx ends, and wraps for others what the leader
// does not.
func (k *Keys) Run(ctx context.Context) error {
	var told string
	for ctx.Err() == nil {
		changed, err := k.follow(ctx)
		pause := again
		switch {
		case err == nil:
			told = ""
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		case ctx.Err() == nil && err.Error() != told:
			told = err.Error()
			k.cfg.Logger.Warn("this device's part in the cluster's Secrets waits, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// follow does what the record asks of this device.
func (k *Keys) follow(ctx context.Context) (changed <-chan struct{}, err error) {
	s, err := k.ensure(ctx)
	if err != nil {
		return nil, err
	}
	if !s.rec.has(k.self) {
		return s.changed, k.Register(ctx, k.self)
	}
	if len(s.rec.lacking(s.ring)) == 0 {
		return s.changed, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.changed:
		return s.changed, nil
	case <-time.After(leaderFirst):
	}
	return s.changed, k.update(ctx, func(s state, rec *record) (bool, error) { return rec.wrapAll(s.ring) })
}

// Rotate makes another key the one that seals. The leader seals anew what there is.
func (k *Keys) Rotate(ctx context.Context) error {
	return k.update(ctx, func(s state, rec *record) (bool, error) {
		if _, have := s.ring[rec.Keys[0].Name]; !have {
			return false, ErrNoKey
		}
		return true, rec.rotate(s)
	})
}

// rotate puts a new key in front, wrapped for all devices.
func (r *record) rotate(s state) error {
	key := newKey()
	r.put(key, s.now)
	s.ring[key.Name] = key
	_, err := r.wrapAll(s.ring)
	return err
}

// Export returns the data keys that this device has, the one that seals first.
func (k *Keys) Export(ctx context.Context) ([]Key, error) {
	s, err := k.ensure(ctx)
	if err != nil {
		return nil, err
	}
	var keys []Key
	for _, w := range s.rec.Keys {
		if key, have := s.ring[w.Name]; have {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, ErrNoKey
	}
	return keys, nil
}

// Import gives the cluster data keys that it has lost, or that another cluster's
// state is sealed under. They open; the key that seals stays.
func (k *Keys) Import(ctx context.Context, keys []Key) error {
	for _, key := range keys {
		if key.Name == "" || strings.Contains(key.Name, ":") || len(key.Secret) != keyBytes {
			return fmt.Errorf("data key %q: want a name and %d bytes", key.Name, keyBytes)
		}
		if ownName.MatchString(key.Name) && nameOf(key.Secret) != key.Name {
			return fmt.Errorf("data key %q: its bytes are another key's", key.Name)
		}
	}
	return k.update(ctx, func(s state, rec *record) (bool, error) {
		changed := false
		for _, key := range keys {
			if old, have := s.ring[key.Name]; have && bytes.Equal(old.Secret, key.Secret) {
				continue
			} else if have {
				return false, fmt.Errorf("there is another data key of the name %q", key.Name)
			}
			i := slices.IndexFunc(rec.Keys, func(w wrappedKey) bool { return w.Name == key.Name })
			if i < 0 {
				rec.Keys = append(rec.Keys, wrappedKey{key.Name, s.now, map[string][]byte{}})
			}
			s.ring[key.Name] = key
			changed = true
		}
		if !changed {
			return false, nil
		}
		_, err := rec.wrapAll(s.ring)
		return true, err
	})
}

// Status tells how Secrets are kept.
type Status struct {
	Sealing bool `json:"sealing"`
	// Keys are the names of the data keys, the one that seals first; more than one
	// while Secrets are sealed anew.
	Keys []string `json:"keys"`
	// Missing are those of them that this device does not have.
	Missing []string `json:"missing,omitempty"`
	// Devices can read Secrets, Waiting have not been given a key yet; by name.
	Devices []string `json:"devices"`
	Waiting []string `json:"waiting,omitempty"`
}

// Status tells how Secrets are kept.
func (k *Keys) Status(ctx context.Context) (Status, error) {
	s, err := k.load(ctx)
	if err != nil || s.rec == nil {
		return Status{}, err
	}
	out := Status{Sealing: s.rec.Sealing}
	for _, w := range s.rec.Keys {
		out.Keys = append(out.Keys, w.Name)
		if _, have := s.ring[w.Name]; !have {
			out.Missing = append(out.Missing, w.Name)
		}
	}
	for _, d := range s.rec.Devices {
		if s.rec.Keys[0].For[fingerprint(d.PublicKey)] == nil {
			out.Waiting = append(out.Waiting, d.Name)
		} else {
			out.Devices = append(out.Devices, d.Name)
		}
	}
	slices.Sort(out.Devices) // they are recorded in the order of their coming
	slices.Sort(out.Waiting)
	return out, nil
}
