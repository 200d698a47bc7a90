package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/validate"

	"github.com/anishathalye/porcupine"
)

// noSpace is how a server refuses a write for lack of room: etcd's way to say
// that it did not and will not take place.
const noSpace = "database space exceeded"

func countOperations(reports []report.ClientReport) (done, failed int, revision int64) {
	for _, r := range reports {
		for _, op := range r.KeyValue {
			if op.Output.(model.MaybeEtcdResponse).Error != "" {
				failed++
			} else {
				done++
			}
		}
	}
	return done, failed, report.OperationsMaxRevision(reports)
}

// judge asks etcd's checkers.
func (h *history) judge(uniqueRevisions bool, dir string) error {
	persisted, err := testimony(h.witnesses, h.reports)
	if err != nil {
		return err
	}
	reports := refusedWrites(h.reports)
	persisted = append(persisted, openCompactions(reports)...)
	result := validate.ValidateAndReturnVisualize(h.lg, validate.Config{ExpectRevisionUnique: uniqueRevisions}, reports, persisted, time.Minute)
	err = result.Error()
	if err != nil {
		err = errors.Join(err, h.save(dir, result.Linearization.Info))
	}
	return err
}

// save writes what was seen, for who wants to know why a run is not clean: the
// longest sequence that explains a part of the operations, if they are no
// linearizable history, all operations, and all watches.
func (h *history) save(dir string, info porcupine.LinearizationInfo) error {
	f, err := os.Create(filepath.Join(dir, "history.json"))
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, l := range partition {
			if len(l) > len(longest) {
				longest = l
			}
		}
	}
	for i, op := range longest {
		err = errors.Join(err, enc.Encode(struct {
			Explained int
			Operation porcupine.Operation
		}{i, op}))
	}
	var ops []porcupine.Operation
	for _, r := range h.reports {
		ops = append(ops, r.KeyValue...)
	}
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, op := range ops {
		err = errors.Join(err, enc.Encode(op))
	}
	for _, r := range h.reports {
		for _, w := range r.Watch {
			err = errors.Join(err, enc.Encode(struct {
				Client int
				Watch  model.WatchOperation
			}{r.ClientID, w}))
		}
	}
	return errors.Join(err, f.Close())
}

// testimony makes of what the witnesses saw the requests that made it: one
// transaction a revision, or the end of a lease. Whatever two of them saw must be the
// same.
func testimony(witnesses, reports []report.ClientReport) ([]model.EtcdRequest, error) {
	seen := map[int64]sight{}
	var newest int64
	for _, w := range witnesses {
		for _, op := range w.Watch {
			for rev, s := range byRevision(op) {
				known, ok := seen[rev]
				if ok && !slices.Equal(known.events, s.events) {
					return nil, fmt.Errorf("members tell different histories: revision %d is %+v, and %+v", rev, known.events, s.events)
				}
				if ok {
					s.at = min(s.at, known.at)
				}
				seen[rev] = s
				newest = max(newest, rev)
			}
		}
	}
	var requests []model.EtcdRequest
	l := leasesOf(reports)
	for rev := int64(2); rev <= newest; rev++ {
		s, ok := seen[rev]
		if !ok {
			return nil, fmt.Errorf("no witness saw revision %d of %d: the run cannot be judged", rev, newest)
		}
		requests = append(requests, l.request(rev, s.events, s.at)...)
	}
	if len(requests) == 0 {
		return nil, errors.New("no witness saw anything")
	}
	return requests, nil
}

// sight is what a witness saw of a revision, and when: nanoseconds since the start.
type sight struct {
	events []model.PersistedEvent
	at     int64
}

func byRevision(op model.WatchOperation) map[int64]sight {
	out := map[int64]sight{}
	for _, resp := range op.Responses {
		for _, e := range resp.Events {
			out[e.Revision] = sight{append(out[e.Revision].events, e.PersistedEvent), resp.Time.Nanoseconds()}
		}
	}
	return out
}

func transaction(events []model.PersistedEvent) model.EtcdRequest {
	txn := &model.TxnRequest{}
	for _, e := range events {
		op := model.EtcdOperation{Type: e.Type}
		switch e.Type {
		case model.PutOperation:
			op.Put = model.PutOptions{Key: e.Key, Value: e.Value}
		case model.DeleteOperation:
			op.Delete = model.DeleteOptions{Key: e.Key}
		}
		txn.OperationsOnSuccess = append(txn.OperationsOnSuccess, op)
	}
	return model.EtcdRequest{Type: model.Txn, Txn: txn}
}

// refusedWrites leaves out what a server said did not take place. If it did
// after all, reads and watches show a value that nobody wrote.
func refusedWrites(reports []report.ClientReport) []report.ClientReport {
	out := slices.Clone(reports)
	for i := range out {
		out[i].KeyValue = slices.DeleteFunc(slices.Clone(out[i].KeyValue), func(op porcupine.Operation) bool {
			return strings.Contains(op.Output.(model.MaybeEtcdResponse).Error, noSpace)
		})
	}
	return out
}

// openCompactions are those without an answer. Watches do not tell of them: the
// checkers must take them for possible, not for undone.
func openCompactions(reports []report.ClientReport) []model.EtcdRequest {
	var out []model.EtcdRequest
	for _, r := range reports {
		for _, op := range r.KeyValue {
			req := op.Input.(model.EtcdRequest)
			if req.Type == model.Compact && op.Output.(model.MaybeEtcdResponse).Error != "" {
				out = append(out, req)
			}
		}
	}
	return out
}

// sameHash compares the members' hashes of their keys' whole history.
func sameHash(ctx context.Context, c *cluster) error {
	cl, err := dial(c.endpoints()...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return until(ctx, "hashes", func(ctx context.Context) error {
		first, err := cl.HashKV(ctx, c.all[0].endpoint(), 0)
		if err != nil {
			return err
		}
		for _, m := range c.all[1:] {
			h, err := cl.HashKV(ctx, m.endpoint(), first.HashRevision)
			if err != nil {
				return err
			}
			if h.Hash != first.Hash || h.CompactRevision != first.CompactRevision {
				return fmt.Errorf("at revision %d %s has %x (compacted to %d), %s has %x (compacted to %d)",
					first.HashRevision, c.all[0].name(), first.Hash, first.CompactRevision, m.name(), h.Hash, h.CompactRevision)
			}
		}
		return nil
	})
}
