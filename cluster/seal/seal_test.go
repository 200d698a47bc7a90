package seal_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/value"
	k8saes "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"edged/apiserver/kinds"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/cluster/seal"
)

// cluster is devices on one replicated store.
type cluster struct {
	t     *testing.T
	store *registrytest.MemStore
	all   []*device
	able  atomic.Bool

	mu      sync.Mutex
	members []uint64 // guarded by mu
}

type device struct {
	c      *cluster
	secret []byte
	member uint64
	keys   *seal.Keys
	reg    *registry.Registry
	r      registry.Client[*corev1.Secret]
	stop   func()
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, store: registrytest.NewMemStore()}
	c.able.Store(true)
	return c
}

func (c *cluster) add() *device {
	d := &device{c: c, secret: make([]byte, 32), member: uint64(len(c.all) + 1)}
	rand.Read(d.secret)
	c.all = append(c.all, d)
	c.mu.Lock()
	c.members = append(c.members, d.member)
	c.mu.Unlock()
	d.start()
	return d
}

// start is the device's daemon started again.
func (d *device) start() {
	t := d.c.t
	t.Helper()
	if d.stop != nil {
		d.stop()
	}
	var err error
	d.keys, err = seal.New(seal.Config{Store: d.c.store, Secret: d.secret, Member: d.member, Name: fmt.Sprint("d", d.member), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d.reg, err = registry.New(registry.Config{Store: d.keys.Wrap(), Kinds: kinds.All(kinds.Config{}), VerifyCache: true})
	if err != nil {
		t.Fatal(err)
	}
	d.r = registry.For[*corev1.Secret](d.reg)
	d.stop = background(t, d.reg.Run)
	if err := d.reg.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// background runs f until stop is called or the test ends.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (d *device) run() (stop func()) { return background(d.c.t, d.keys.Run) }

func (d *device) lead() (stop func()) {
	return background(d.c.t, func(ctx context.Context) error {
		return d.keys.Lead(ctx, seal.Cluster{
			Members: func(context.Context) ([]uint64, error) {
				d.c.mu.Lock()
				defer d.c.mu.Unlock()
				return slices.Clone(d.c.members), nil
			},
			Able: func(context.Context) bool { return d.c.able.Load() },
		})
	})
}

func (c *cluster) remove(d *device) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = slices.DeleteFunc(c.members, func(m uint64) bool { return m == d.member })
}

func secretOf(name, text string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: map[string][]byte{"k": []byte(text)}}
}

func (d *device) create(name, text string) {
	d.c.t.Helper()
	if _, err := d.r.Create(d.c.t.Context(), secretOf(name, text)); err != nil {
		d.c.t.Fatal(err)
	}
}

func (d *device) reads(name, text string) bool {
	s, ok := d.r.Get("ns", name)
	return ok && string(s.Data["k"]) == text
}

func (c *cluster) eventually(what string, f func() bool) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// stored are the values of all Secrets.
func (c *cluster) stored() map[string][]byte {
	resp, err := c.store.Range(c.t.Context(), &pb.RangeRequest{Key: []byte("/registry/secrets/"), RangeEnd: []byte("/registry/secrets0")})
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, kv := range resp.Kvs {
		out[string(kv.Key)] = kv.Value
	}
	return out
}

// sealedBy says whether all Secrets are sealed under the key of that name.
func (c *cluster) sealedBy(name string) bool {
	for _, v := range c.stored() {
		if !bytes.HasPrefix(v, []byte("k8s:enc:aesgcm:v1:"+name+":")) {
			return false
		}
	}
	return true
}

func (d *device) status() seal.Status {
	d.c.t.Helper()
	s, err := d.keys.Status(d.c.t.Context())
	if err != nil {
		d.c.t.Fatal(err)
	}
	return s
}

// plainly stores objects as an older daemon, or a kube-apiserver without keys, does.
func (c *cluster) plainly(objects ...*corev1.Secret) {
	c.t.Helper()
	reg, err := registry.New(registry.Config{Store: c.store, Kinds: kinds.All(kinds.Config{})})
	if err != nil {
		c.t.Fatal(err)
	}
	stop := background(c.t, reg.Run)
	defer stop()
	if err := reg.WaitReady(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	for _, s := range objects {
		if _, err := registry.For[*corev1.Secret](reg).Create(c.t.Context(), s); err != nil {
			c.t.Fatal(err)
		}
	}
}

// older makes the store that of a cluster that older daemons have made.
func (c *cluster) older() {
	c.t.Helper()
	_, err := c.store.Txn(c.t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
		RequestPut: &pb.PutRequest{Key: []byte("/registry/namespaces/default"), Value: []byte(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"default"}}`)},
	}}}})
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestFirstSecretIsSealed: a new cluster never stores a Secret in the clear, also
// before anybody leads; each device reads it, and again after a restart with
// nothing but its own replica.
func TestFirstSecretIsSealed(t *testing.T) {
	c := newCluster(t)
	a := c.add()
	a.create("s", "the value")
	for key, v := range c.stored() {
		if bytes.Contains(v, []byte("the value")) || !bytes.HasPrefix(v, []byte("k8s:enc:aesgcm:v1:")) {
			t.Errorf("%s: %q", key, v)
		}
	}
	a.run()
	a.lead()
	b := c.add()
	if b.reads("s", "the value") {
		t.Error("a device that was given no key reads")
	}
	b.run()
	c.eventually("b reads what it could not", func() bool { return b.reads("s", "the value") })
	b.create("t", "of b")
	c.eventually("a reads b's", func() bool { return a.reads("t", "of b") })
	b.start()
	if !b.reads("s", "the value") || !b.reads("t", "of b") {
		t.Error("b does not read after a restart")
	}
	for _, name := range []string{"s", "t"} {
		if _, err := b.r.Update(t.Context(), "ns", name, func(s *corev1.Secret) error { s.Data["k"] = []byte("new"); return nil }); err != nil {
			t.Fatal(err)
		}
		c.eventually("the update arrives", func() bool { return a.reads(name, "new") })
	}
}

// TestAdmittedDeviceReadsAtOnce: with its public key told on admission, a device
// has all keys when its replica has the state.
func TestAdmittedDeviceReadsAtOnce(t *testing.T) {
	c := newCluster(t)
	a := c.add()
	a.create("s", "v")
	b := &device{c: c, secret: make([]byte, 32), member: 2}
	pub, err := seal.PublicKey(b.secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.keys.Register(t.Context(), seal.Device{Member: 2, Name: "d2", PublicKey: pub}); err != nil {
		t.Fatal(err)
	}
	b.start()
	if !b.reads("s", "v") {
		t.Error("b does not read")
	}
	b.create("t", "w") // has all it needs
}

// TestRemovalRotates: what is written after a device was removed, and in time all
// that there is, cannot be opened with what it had.
func TestRemovalRotates(t *testing.T) {
	c := newCluster(t)
	a, b, thief := c.add(), c.add(), c.add()
	a.run()
	b.run()
	unplug := thief.run()
	for i := range 40 {
		a.create(fmt.Sprint("s", i), "v")
	}
	stop := a.lead()
	c.eventually("all read", func() bool { return b.reads("s39", "v") && thief.reads("s39", "v") })
	before := a.status()
	if len(before.Devices) != 3 || len(before.Keys) != 1 {
		t.Fatalf("%+v", before)
	}
	stop() // nobody leads meanwhile
	c.remove(thief)
	unplug() // the others let nothing of it in
	old, err := thief.keys.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.lead()
	c.eventually("one other key", func() bool {
		s := a.status()
		return len(s.Keys) == 1 && s.Keys[0] != before.Keys[0] && slices.Equal(s.Devices, []string{"d1", "d2"})
	})
	if name := a.status().Keys[0]; !c.sealedBy(name) || name == old[0].Name {
		t.Errorf("not all sealed under %s", name)
	}
	for i := range 40 {
		name := fmt.Sprint("s", i)
		c.eventually(name, func() bool { return a.reads(name, "v") && b.reads(name, "v") })
	}
	// With the card alone: the record holds nothing that is for it.
	thief.start()
	if _, err := thief.keys.Export(t.Context()); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("it has a key: %v", err)
	}
	if thief.reads("s0", "v") {
		t.Error("it reads")
	}
}

// TestOlderClusterIsSealedWhenAllCanRead: while an older daemon is a member all is
// in the clear, so that it reads; afterwards what there was is sealed.
func TestOlderClusterIsSealedWhenAllCanRead(t *testing.T) {
	c := newCluster(t)
	c.older()
	c.plainly(secretOf("old", "v"))
	a := c.add()
	c.members = append(c.members, 9) // an older daemon
	a.run()
	a.lead()
	a.create("new", "v")
	for key, v := range c.stored() {
		if !bytes.HasPrefix(v, []byte("k8s\x00")) {
			t.Errorf("%s is sealed: %q", key, v)
		}
	}
	c.able.Store(false)
	c.mu.Lock()
	c.members[1] = 2 // a newer one, that may be taken back
	c.mu.Unlock()
	b := &device{c: c, secret: make([]byte, 32), member: 2}
	b.start()
	b.run()
	c.eventually("b is known", func() bool { return len(a.status().Devices) == 2 })
	if a.status().Sealing {
		t.Error("sealed too early")
	}
	c.able.Store(true)
	c.eventually("all is sealed", func() bool { s := a.status(); return s.Sealing && c.sealedBy(s.Keys[0]) })
	c.eventually("all read", func() bool {
		return a.reads("old", "v") && a.reads("new", "v") && b.reads("old", "v") && b.reads("new", "v")
	})

	c.plainly(secretOf("clear", "v")) // by a kube-apiserver without keys
	c.eventually("that, too", func() bool { return c.sealedBy(a.status().Keys[0]) && b.reads("clear", "v") })
}

// TestWriterBehind: who has not heard of a rotation does not seal under the key
// before.
func TestWriterBehind(t *testing.T) {
	c := newCluster(t)
	a := c.add()
	a.create("s", "v")
	held := &lagging{Store: c.store}
	keys, err := seal.New(seal.Config{Store: held, Secret: a.secret, Member: 1, Name: "d1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	slow := keys.Wrap()
	put := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("/registry/secrets/ns/t"), Value: []byte("k8s\x00")}}}}}
	held.now(t)
	if err := a.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if resp, err := slow.Txn(t.Context(), put); err != nil || resp.Succeeded {
		t.Errorf("it wrote: %v %v", resp, err)
	}
	held.now(t)
	if resp, err := slow.Txn(t.Context(), put); err != nil || !resp.Succeeded {
		t.Errorf("it does not write: %v %v", resp, err)
	}
}

// lagging is a replica that reads what was there when now was called.
type lagging struct {
	registry.Store
	revision int64
}

func (l *lagging) now(t *testing.T) {
	l.revision, _ = l.Store.ReadIndex(t.Context())
}

func (l *lagging) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	at, ok := proto.Clone(req).(*pb.RangeRequest)
	if !ok {
		return nil, errors.New("not a clone")
	}
	at.Revision = l.revision
	return l.Store.Range(ctx, at)
}

// TestLostKeysAreImported: a state whose keys no device has goes on, and is read
// when they are given back; no sooner are they forgotten.
func TestLostKeysAreImported(t *testing.T) {
	c := newCluster(t)
	a := c.add()
	a.create("s", "v")
	keys, err := a.keys.Export(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	rand.Read(a.secret) // another device with its state
	a.member = 7
	c.members[0] = 7
	a.start()
	a.run()
	a.lead()
	c.eventually("another key seals", func() bool { s := a.status(); return len(s.Keys) == 2 && len(s.Missing) == 1 })
	a.create("t", "w")
	if a.reads("s", "v") || !a.reads("t", "w") {
		t.Error("it reads what it has no key for, or does not read what it wrote")
	}
	wrong := seal.Key{Name: keys[0].Name, Secret: make([]byte, 32)}
	if err := a.keys.Import(t.Context(), []seal.Key{wrong}); err == nil || !strings.Contains(err.Error(), "another key's") {
		t.Errorf("a wrong key: %v", err)
	}
	if err := a.keys.Import(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	c.eventually("it reads", func() bool { return a.reads("s", "v") })
	c.eventually("one key is enough", func() bool { s := a.status(); return len(s.Keys) == 1 && c.sealedBy(s.Keys[0]) })
}

// TestKubernetesReadsIt: what is stored is what Kubernetes' own transformer, given
// the exported key, opens, and the reverse.
func TestKubernetesReadsIt(t *testing.T) {
	c := newCluster(t)
	a := c.add()
	a.create("s", "v")
	keys, err := a.keys.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(keys[0].Secret)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := k8saes.NewGCMTransformer(block)
	if err != nil {
		t.Fatal(err)
	}
	theirs := value.NewPrefixTransformers(errors.New("no provider"), value.PrefixTransformer{Prefix: []byte("k8s:enc:aesgcm:v1:" + keys[0].Name + ":"), Transformer: gcm})
	for key, v := range c.stored() {
		plain, stale, err := theirs.TransformFromStorage(t.Context(), v, value.DefaultContext(key))
		if err != nil || stale || !bytes.HasPrefix(plain, []byte("k8s\x00")) {
			t.Errorf("%s: %v, %v, %q", key, err, stale, plain)
		}
		sealed, err := theirs.TransformToStorage(t.Context(), plain, value.DefaultContext("/registry/secrets/ns/theirs"))
		if err != nil {
			t.Fatal(err)
		}
		sealed = bytes.Clone(sealed)
		if _, err := c.store.Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte("/registry/secrets/ns/theirs"), Value: sealed},
		}}}}); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("it reads theirs", func() bool { return a.reads("theirs", "v") })
}

// FuzzOpen: whatever is stored, reading it ends without a panic and does not take
// the other Secrets away.
func FuzzOpen(f *testing.F) {
	for _, s := range []string{"", "k8s:enc:", "k8s:enc:aesgcm:v1:", "k8s:enc:aesgcm:v1:e00000000:x", "k8s:enc:secretbox:v1:k:x", "k8s:enc:aesgcm:v1::" + base64.StdEncoding.EncodeToString(make([]byte, 40))} {
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, secret, record []byte) {
		store := registrytest.NewMemStore()
		put := func(key string, v []byte) {
			if _, err := store.Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: v}}}}}); err != nil {
				t.Fatal(err)
			}
		}
		put("/registry/secrets/ns/s", secret)
		put(seal.RecordKey, record)
		keys, err := seal.New(seal.Config{Store: store, Secret: make([]byte, 32), Member: 1, Name: "d", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := keys.Wrap().Range(t.Context(), &pb.RangeRequest{Key: []byte("/registry/"), RangeEnd: []byte("/registry0")})
		if err != nil || len(resp.Kvs) != 1 {
			t.Errorf("%v, %v", resp, err)
		}
	})
}
