package registry

import (
	"context"
	"fmt"
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"edged/apiserver/objcache"
)

// Tx is the store transaction of one write, to which a kind's Transact may add
// other objects. What it reads is compared again when the transaction is
// applied: if anything moved, the whole write runs again on newer state.
type Tx struct {
	r        *Registry
	compares []*pb.Compare
	ops      []*pb.RequestOp
	seen     map[string]bool
}

func newTx(r *Registry) *Tx { return &Tx{r: r, seen: map[string]bool{}} }

// Get reads an object of another kind. The object is shared.
func (tx *Tx) Get(gr schema.GroupResource, ns, name string) (runtime.Object, bool) {
	k := tx.kind(gr)
	key := k.key(ns, name)
	e, ok := k.set.Get(key)
	var revision int64
	if ok {
		revision = e.Revision
	}
	tx.compare(k.keyPrefix()+key, revision)
	if !ok {
		return nil, false
	}
	return e.Object, true
}

// Exists looks whether there is an object, without holding the transaction to
// the answer.
func (tx *Tx) Exists(gr schema.GroupResource, ns, name string) bool {
	k := tx.kind(gr)
	_, ok := k.set.Get(k.key(ns, name))
	return ok
}

// List reads the cached objects of a kind, without comparing them at commit.
func (tx *Tx) List(gr schema.GroupResource) []runtime.Object {
	entries, _ := tx.kind(gr).set.List("")
	out := make([]runtime.Object, len(entries))
	for i, e := range entries {
		out[i] = e.Object
	}
	return out
}

// Put writes an object of another kind, which the caller has read with Get. It
// runs no strategy and no admission.
func (tx *Tx) Put(gr schema.GroupResource, obj runtime.Object) error {
	k := tx.kind(gr)
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	value, err := k.encode(obj)
	if err != nil {
		return err
	}
	tx.put(k.keyPrefix()+k.key(m.GetNamespace(), m.GetName()), value, 0)
	return nil
}

// Delete removes an object of another kind, which the caller has read with
// Get.
func (tx *Tx) Delete(gr schema.GroupResource, ns, name string) {
	k := tx.kind(gr)
	tx.delete(k.keyPrefix() + k.key(ns, name))
}

func (tx *Tx) kind(gr schema.GroupResource) *Kind {
	k := tx.r.rows().byResource[gr]
	if k == nil {
		panic(fmt.Sprintf("registry: transaction on %s, which is not in the table of kinds", gr))
	}
	return k
}

// compare adds "key was last written at revision" (0: does not exist), once.
func (tx *Tx) compare(key string, revision int64) {
	if tx.seen[key] {
		return // a transaction may name a key once
	}
	tx.seen[key] = true
	tx.compares = append(tx.compares, &pb.Compare{
		Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
	})
}

func (tx *Tx) put(key string, value []byte, lease int64) {
	tx.ops = append(tx.ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
		RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, Lease: lease},
	}})
}

func (tx *Tx) delete(key string) {
	tx.ops = append(tx.ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)},
	}})
}

// commit applies the transaction. won is false if something it had read has
// changed since.
func (tx *Tx) commit(ctx context.Context) (revision int64, won bool, err error) {
	resp, err := tx.r.store.Txn(ctx, &pb.TxnRequest{Compare: tx.compares, Success: tx.ops})
	if err != nil {
		return 0, false, storeError(err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
}

// encode is the stored form of obj, of the kind's storage version: without a
// resourceVersion, which the store supplies.
func (k *Kind) encode(obj runtime.Object) ([]byte, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	rv, link := m.GetResourceVersion(), m.GetSelfLink()
	m.SetResourceVersion("")
	m.SetSelfLink("")
	defer func() { m.SetResourceVersion(rv); m.SetSelfLink(link) }()
	return k.codec.Encode(obj)
}

// encodeShared is encode for an object that must not be touched.
func (k *Kind) encodeShared(obj runtime.Object) ([]byte, error) {
	return k.encode(objcache.ShallowCopy(obj))
}

// stored is the object as the cache has it after it was written at revision;
// decoded from its bytes if the cache has moved on or the wait was cut short.
func (k *Kind) stored(key string, value []byte, revision int64) (runtime.Object, error) {
	if e, ok := k.set.Get(key); ok && e.Revision == revision {
		return e.Object, nil
	}
	obj, err := k.codec.Decode(value)
	if err != nil {
		return nil, err
	}
	return obj, setVersion(obj, revision)
}

func setVersion(obj runtime.Object, revision int64) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	m.SetResourceVersion(strconv.FormatInt(revision, 10))
	return nil
}
