// Package rotation replaces the cluster's CA while everything runs, also on
// devices that are away when it begins.
//
// It is not the CA: keys, certificates and what is on disk are
// cluster/identity's. It reads and writes one record through a Store.
//
// Types: a [Rotation] is this device's part. [Rotation.Start] puts a new CA on
// record, [Rotation.Run] makes this device follow the record, and
// [Rotation.Finish] has every device give up the old CA.
//
// Promises. Between Start and Finish both CAs are trusted and each device that
// has taken up the new one shows certificates that lead to either, so devices,
// kubeconfigs, tokens to join and Pods that know only the old one go on. A
// device that was away catches up when it reads the record from its replica.
// Finish refuses while a member has not taken up the new CA, unless it is forced:
// such a device then has to join again. A record is changed by compare-and-swap.
//
// Dangers: what was signed by the old CA alone (kubeconfigs that were printed,
// tokens to join) is worthless after Finish.
//
// Goroutines: [Rotation.Run] is one, owned by its caller; it sleeps until the
// record changes. May be imported by: cmd/edged.
//
// Sources: RFC 4210 section 4.4 (root CA key update) for the cross certificate.
package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"edged/cluster/identity"
)

const (
	version = 1
	// again is the pause after a failure: no quorum, a full disk.
	again = 5 * time.Second
	// attempts bounds the tries of a compare-and-swap that others win.
	attempts = 20
)

// ErrConflict is Store.Save's when the record has changed meanwhile.
var ErrConflict = errors.New("the record has changed meanwhile")

// Store keeps the record for all devices.
type Store interface {
	// Load returns the record, nil if there is none, and its revision.
	Load(ctx context.Context) (data []byte, rev int64, err error)
	// Save replaces what was loaded at rev, or returns ErrConflict.
	Save(ctx context.Context, data []byte, rev int64) error
	// Wait returns when the record may differ from what it was at rev.
	Wait(ctx context.Context, rev int64) error
}

// record is what the cluster knows of its latest rotation.
type record struct {
	Version   int                `json:"version"`
	Successor identity.Successor `json:"successor"`
	// Adopted are the names of the devices that sign with it.
	Adopted  []string `json:"adopted"`
	Finished bool     `json:"finished,omitempty"`
}

// Status tells how far a rotation is.
type Status struct {
	// Running is false when there is but one CA.
	Running bool `json:"running"`
	// Adopted and Missing are the names of the members that have taken up the new
	// CA and that have not.
	Adopted []string `json:"adopted,omitempty"`
	Missing []string `json:"missing,omitempty"`
}

// Rotation is one device's part. Its methods may be called from any goroutine.
type Rotation struct {
	Name     string // of this device
	Identity *identity.Identity
	Store    Store
	// Members are the names of all members of the cluster.
	Members func(context.Context) ([]string, error)
	Logger  *slog.Logger
}

func (r *Rotation) load(ctx context.Context) (*record, int64, error) {
	data, rev, err := r.Store.Load(ctx)
	if err != nil || data == nil {
		return nil, rev, err
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return nil, rev, fmt.Errorf("the record of the CA's rotation: %w", err)
	}
	if rec.Version != version {
		return nil, rev, fmt.Errorf("the record of the CA's rotation is of version %d, this edged understands %d: use a newer edged", rec.Version, version)
	}
	return &rec, rev, nil
}

// update changes the record by compare-and-swap. Change gets nil if there is none
// and may return nil to leave it.
func (r *Rotation) update(ctx context.Context, change func(*record) (*record, error)) error {
	for range attempts {
		rec, rev, err := r.load(ctx)
		if err != nil {
			return err
		}
		if rec, err = change(rec); rec == nil || err != nil {
			return err
		}
		data, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if err = r.Store.Save(ctx, data, rev); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return ErrConflict
}

// Start puts a new CA on record. There may be but one rotation at a time.
func (r *Rotation) Start(ctx context.Context) error {
	return r.update(ctx, func(rec *record) (*record, error) {
		switch {
		case rec != nil && !rec.Finished:
			return nil, errors.New("the CA is being replaced already; `edged ca status` tells how far it is")
		case rec != nil && !r.Identity.Follows(rec.Successor):
			return nil, errors.New("this device has not taken up the latest CA yet; try again in a moment")
		}
		next, err := r.Identity.NewSuccessor()
		return &record{Version: version, Successor: next}, err
	})
}

// Status tells how far a rotation is.
func (r *Rotation) Status(ctx context.Context) (Status, error) {
	rec, _, err := r.load(ctx)
	if err != nil || rec == nil || rec.Finished {
		return Status{}, err
	}
	s := Status{Running: true}
	members, err := r.Members(ctx)
	if err != nil {
		return Status{}, err
	}
	for _, m := range members {
		if slices.Contains(rec.Adopted, m) {
			s.Adopted = append(s.Adopted, m)
		} else {
			s.Missing = append(s.Missing, m)
		}
	}
	return s, nil
}

// Finish has every device trust the new CA alone. Members that have not taken it
// up make it refuse, unless force is set.
func (r *Rotation) Finish(ctx context.Context, force bool) error {
	members, err := r.Members(ctx)
	if err != nil {
		return err
	}
	return r.update(ctx, func(rec *record) (*record, error) {
		if rec == nil || rec.Finished {
			return nil, errors.New("the CA is not being replaced; `edged ca rotate` begins that")
		}
		missing := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return slices.Contains(rec.Adopted, m) })
		if len(missing) > 0 && !force {
			return nil, fmt.Errorf("not yet with the new CA: %s; wait for them, remove them, or shut them out with --force", strings.Join(missing, ", "))
		}
		rec.Finished = true
		return rec, nil
	})
}

// Run makes this device follow the record until ctx ends.
func (r *Rotation) Run(ctx context.Context) error {
	var told string
	for ctx.Err() == nil {
		rev, err := r.follow(ctx)
		if err == nil {
			told = ""
			err = r.Store.Wait(ctx, rev)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if err.Error() != told {
			told = err.Error()
			r.Logger.Warn("the CA's rotation waits, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return nil
}

// follow does what the record asks of this device and returns its revision.
func (r *Rotation) follow(ctx context.Context) (int64, error) {
	rec, rev, err := r.load(ctx)
	if err != nil || rec == nil {
		return rev, err
	}
	if !r.Identity.Follows(rec.Successor) {
		if err := r.Identity.Adopt(rec.Successor); err != nil {
			return rev, err
		}
		r.Logger.Info("this device signs with the cluster's new CA", "ca", r.Identity.CA().Subject.CommonName)
	}
	if rec.Finished {
		if len(r.Identity.CAs()) > 1 {
			if err := r.Identity.DropOld(); err != nil {
				return rev, fmt.Errorf("give up the old CA: %w", err)
			}
			r.Logger.Info("the cluster's old CA is not trusted any more")
		}
		return rev, nil
	}
	if slices.Contains(rec.Adopted, r.Name) {
		return rev, nil
	}
	return rev, r.update(ctx, func(rec *record) (*record, error) {
		if rec == nil || rec.Finished || slices.Contains(rec.Adopted, r.Name) {
			return nil, nil
		}
		rec.Adopted = append(rec.Adopted, r.Name)
		return rec, nil
	})
}
