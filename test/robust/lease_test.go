package main

import (
	"testing"

	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"

	"github.com/anishathalye/porcupine"
)

// TestUnansweredDeletion: a key that went with its lease, and one whose deletion a
// client asked for and was told nothing of, are told apart.
func TestUnansweredDeletion(t *testing.T) {
	put := model.EtcdOperation{Type: model.PutOperation, Put: model.PutOptions{Key: "k", Value: model.ToValueOrHash("v"), LeaseID: 7}}
	del := model.EtcdOperation{Type: model.DeleteOperation, Delete: model.DeleteOptions{Key: "k"}}
	ask := func(at int64, o model.EtcdOperation, resp model.MaybeEtcdResponse) porcupine.Operation {
		return porcupine.Operation{Call: at, Input: model.EtcdRequest{Type: model.Txn, Txn: &model.TxnRequest{OperationsOnSuccess: []model.EtcdOperation{o}}}, Output: resp}
	}
	first := ask(1, put, model.MaybeEtcdResponse{})
	gone := []model.PersistedEvent{{Event: model.Event{Type: model.DeleteOperation, Key: "k"}, Revision: 3}}
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		want model.RequestType
	}{
		{"nobody asked", nil, model.LeaseRevoke},
		{"asked, no answer", []porcupine.Operation{ask(5, del, model.MaybeEtcdResponse{Error: "unavailable"})}, model.Txn},
		{"asked afterwards", []porcupine.Operation{ask(11, del, model.MaybeEtcdResponse{Error: "unavailable"})}, model.LeaseRevoke},
		{"told", []porcupine.Operation{ask(5, del, model.MaybeEtcdResponse{EtcdResponse: model.EtcdResponse{Revision: 3}})}, model.Txn},
	} {
		l := leasesOf([]report.ClientReport{{KeyValue: append([]porcupine.Operation{first}, c.ops...)}})
		l.request(2, []model.PersistedEvent{{Event: model.Event{Type: model.PutOperation, Key: "k", Value: model.ToValueOrHash("v")}, Revision: 2}}, 2)
		if got := l.request(3, gone, 10); len(got) != 1 || got[0].Type != c.want {
			t.Errorf("%s: %+v, want one %s", c.name, got, c.want)
		}
	}
}
