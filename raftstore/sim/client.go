package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"edged/raftstore/auth"
	"edged/raftstore/mvcc"
)

// client asks one thing after the other, each of any member.
type client struct {
	w     *world
	id    int
	round int
	ops   []Op
	last  map[string]string // what it saw or wrote last, by key
}

func (c *client) next() {
	if c.w.now > troubled+healing*3/4 {
		return
	}
	n := c.w.any()
	if n == nil {
		c.w.after(time.Second, c.next)
		return
	}
	if c.last == nil {
		c.last = map[string]string{}
	}
	i := len(c.ops)
	key := fmt.Sprintf("k%d", c.w.chance.IntN(3))
	op := Op{Client: c.id, Key: key, Kind: OpKind(c.w.chance.IntN(4)), Call: c.w.now}
	if op.Kind == Delete && c.w.chance.IntN(3) > 0 {
		op.Kind = Get
	}
	if op.Kind == Put || op.Kind == Swap {
		op.Value = fmt.Sprintf("c%d-%d", c.id, i)
	}
	if op.Kind == Swap {
		op.Old = c.last[key]
	}
	c.ops = append(c.ops, op)
	c.round++
	round := c.round
	c.ask(n, i, func() {
		if c.round != round {
			return // too late: the client has given up
		}
		c.round++
		o := &c.ops[i]
		o.Answered, o.Return = true, c.w.now
		c.w.note("c%d: %+v", c.id, *o)
		switch {
		case o.Kind == Get:
			c.last[key] = o.Got
		case o.Kind == Put || o.Swapped:
			c.last[key] = o.Value
		}
		c.w.after(c.w.delay(100*time.Millisecond), c.next)
	})
	c.w.after(patience, func() {
		if c.round != round {
			return
		}
		c.round++
		// Whether it took place is open: whoever asks next is another process.
		c.id += 100
		c.w.after(0, c.next)
	})
}

// ask asks a member; done is called once the answer is in c.ops[i], or never.
func (c *client) ask(n *node, i int, done func()) {
	op := c.ops[i]
	write := func(req *pb.InternalRaftRequest, took func(proto.Message)) {
		n.propose(req, func(resp proto.Message, err error) {
			if err != nil {
				c.w.fail("%+v: %v", op, err)
				return
			}
			if !c.ops[i].Answered {
				took(resp)
				done()
			}
		})
	}
	switch op.Kind {
	case Get:
		n.read(func() {
			resp, err := n.db.Range(auth.Trusted, &pb.RangeRequest{Key: []byte(op.Key)})
			if err != nil {
				c.w.fail("%+v: %v", op, err)
				return
			}
			got := ""
			if len(resp.Kvs) > 0 {
				got = string(resp.Kvs[0].Value)
			}
			c.w.after(c.w.delay(5*time.Millisecond), func() {
				c.ops[i].Got = got
				done()
			})
		})
	case Put:
		write(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(op.Key), Value: []byte(op.Value)}}, func(m proto.Message) {
			c.ops[i].Revision = m.(*pb.PutResponse).Header.Revision
		})
	case Delete:
		write(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte(op.Key)}}, func(m proto.Message) {
			if r := m.(*pb.DeleteRangeResponse); r.Deleted > 0 {
				c.ops[i].Revision = r.Header.Revision
			}
		})
	case Swap:
		cmp := &pb.Compare{Key: []byte(op.Key), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(op.Old)}}
		if op.Old == "" {
			cmp = &pb.Compare{Key: []byte(op.Key), Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{}}
		}
		put := func(key string) *pb.RequestOp {
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(op.Value)}}}
		}
		req := &pb.TxnRequest{Compare: []*pb.Compare{cmp}, Success: []*pb.RequestOp{put(op.Key), put("twin/" + op.Key)}}
		write(&pb.InternalRaftRequest{Txn: req}, func(m proto.Message) {
			r := m.(*pb.TxnResponse)
			c.ops[i].Swapped = r.Succeeded
			if r.Succeeded {
				c.ops[i].Revision = r.Header.Revision
			}
		})
	}
}

// watcher follows the whole history, at one member after the other.
type watcher struct {
	w    *world
	at   *node
	life int
	in   *mvcc.Watcher
	next int64 // the first revision not yet seen
}

func (x *watcher) poll() {
	x.read()
	if x.w.chance.IntN(20) == 0 {
		x.in = nil // go on elsewhere
	}
	x.w.after(x.w.delay(500*time.Millisecond), x.poll)
}

// read takes what there is.
func (x *watcher) read() {
	if x.in == nil || x.at.life != x.life {
		x.in = nil
		n := x.w.any()
		if n == nil {
			return
		}
		x.goOn(n)
	}
	x.drain()
}

// goOn goes on at a member where it stopped at another.
func (x *watcher) goOn(n *node) {
	x.at, x.life = n, n.life
	x.in = n.db.Watch([]byte{0}, []byte{0}, x.next, true)
}

func (x *watcher) drain() {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		b, err := x.in.Next(over)
		if errors.Is(err, context.Canceled) {
			return
		}
		if err != nil {
			x.w.fail("watch at n%d from %d: %v", x.at.id, x.next, err)
			return
		}
		x.take(b)
	}
}

// take checks a batch against the history.
func (x *watcher) take(b mvcc.Batch) {
	w := x.w
	for i := 0; i < len(b.Events); {
		rev := b.Events[i].Kv.ModRevision
		j := i
		for j < len(b.Events) && b.Events[j].Kv.ModRevision == rev {
			j++
		}
		if rev != x.next {
			w.fail("a watcher at n%d sees revision %d, %d is next", x.at.id, rev, x.next)
			return
		}
		if !w.sees(rev, b.Events[i:j]) {
			w.fail("n%d tells of revision %d: %v, it was %v", x.at.id, rev, b.Events[i:j], w.history[rev])
			return
		}
		x.next, i = rev+1, j
	}
	if b.Revision != x.next-1 {
		w.fail("a batch says that it goes to %d, it goes to %d", b.Revision, x.next-1)
	}
}

// sees compares a revision with what was seen of it before.
func (w *world) sees(rev int64, events []*mvccpb.Event) bool {
	known, ok := w.history[rev]
	if !ok {
		w.history[rev] = events
		w.newest = max(w.newest, rev)
		return true
	}
	if len(known) != len(events) {
		return false
	}
	for i := range known {
		if known[i].Type != events[i].Type || !proto.Equal(known[i].Kv, events[i].Kv) {
			return false
		}
	}
	return true
}
