package sim

import (
	"container/heap"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"edged/raftstore/consensus"
)

const (
	tick          = 100 * time.Millisecond
	electionTicks = 10
	patience      = 4 * time.Second // a client's
	// Of a run: with faults, and then without, until all is quiet.
	troubled = 40 * time.Second
	healing  = 40 * time.Second
)

// Options say how a seed is played.
type Options struct {
	Seed uint64
	// Dir is an empty folder for bbolt's files.
	Dir string
	// Trace, if set, gets a line per event.
	Trace io.Writer
}

// Op is what a client asked, and what it was answered.
type Op struct {
	Client     int
	Key        string
	Kind       OpKind
	Value, Old string // written; compared
	Call       time.Duration
	// Return is when it was answered; an op that was not may have taken place
	// at any time.
	Return   time.Duration
	Answered bool
	// Got is what a Get read, Swapped whether a Swap took place.
	Got      string
	Swapped  bool
	Revision int64
}

// OpKind is what an Op does.
type OpKind int

// Kinds of Op.
const (
	Put    OpKind = iota
	Get           // linearizable
	Swap          // Value, if the value is Old
	Delete        // "" is no value
)

// Result is a run's.
type Result struct {
	Ops    []Op
	Digest uint64 // of all events
	Events int
	// What happened, for the reader to see that it did.
	Again, Elections, Crashes, Snapshots, Changes, Acknowledged int
	// Err is what the run itself found wrong.
	Err error
}

// event is something that happens at a time.
type event struct {
	at  time.Duration
	seq int
	run func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// world is everything.
type world struct {
	opt      Options
	chance   *rand.Rand
	now      time.Duration
	queue    events
	seq      int
	nodes    []*node // in the order in which they came
	clients  []*client
	watches  []*watcher
	log      *slog.Logger
	trace    hash.Hash64
	res      Result
	requests uint64

	// the network's faults
	loss, twice float64
	slow        time.Duration
	severed     map[[2]uint64]bool // from, to
	calm        bool               // faults are over

	history map[int64][]*mvccpb.Event // by revision, as the first watcher saw it
	newest  int64
}

// reader makes crypto/rand.Reader of a seed.
type reader struct{ *rand.ChaCha8 }

// Run plays a seed.
func Run(opt Options) Result {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], opt.Seed)
	was := crand.Reader
	crand.Reader = reader{rand.NewChaCha8(key)}
	defer func() { crand.Reader = was }()
	w := &world{
		opt: opt, chance: rand.New(rand.NewPCG(opt.Seed, 77)), log: slog.New(slog.DiscardHandler), trace: fnv.New64a(),
		severed: map[[2]uint64]bool{}, history: map[int64][]*mvccpb.Event{},
	}
	w.play()
	for _, n := range w.nodes {
		n.close()
	}
	for _, c := range w.clients {
		w.res.Ops = append(w.res.Ops, c.ops...)
	}
	w.res.Digest, w.res.Events = w.trace.Sum64(), w.seq
	return w.res
}

func (w *world) play() {
	w.found()
	for i := range 4 + w.chance.IntN(3) {
		c := &client{w: w, id: i}
		w.clients = append(w.clients, c)
		w.after(w.delay(time.Second), c.next)
	}
	for range 3 {
		x := &watcher{w: w, next: 2}
		w.watches = append(w.watches, x)
		w.after(w.delay(time.Second), x.poll)
	}
	w.after(w.delay(2*time.Second), w.nemesis)
	w.runUntil(troubled)
	w.heal()
	w.runUntil(troubled + healing)
	w.judge()
}

// found makes a new cluster.
func (w *world) found() {
	var founders []consensus.Member
	for i := range 3 + 2*w.chance.IntN(2) {
		founders = append(founders, consensus.Member{ID: uint64(i + 1), PeerURLs: []string{fmt.Sprintf("http://n%d", i+1)}})
	}
	m, err := consensus.NewMembership(founders)
	if err != nil {
		w.fail("found a cluster: %v", err)
		return
	}
	for _, f := range m.Members {
		w.add(f.ID).start(m)
	}
}

func (w *world) add(id uint64) *node {
	n := newNode(w, id)
	w.nodes = append(w.nodes, n)
	w.after(w.delay(tick), n.clock)
	return n
}

func (w *world) node(id uint64) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func (w *world) fail(format string, args ...any) {
	if w.res.Err == nil {
		w.res.Err = fmt.Errorf("%v: "+format, append([]any{w.now}, args...)...)
	}
}

// note records an event.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%12d %s\n", w.now.Microseconds(), fmt.Sprintf(format, args...))
	_, _ = w.trace.Write([]byte(line)) // a hash takes everything
	if w.opt.Trace != nil {
		if _, err := io.WriteString(w.opt.Trace, line); err != nil {
			w.fail("trace: %v", err)
		}
	}
}

func (w *world) after(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, f})
}

func (w *world) delay(upTo time.Duration) time.Duration {
	return time.Duration(w.chance.Int64N(int64(upTo) + 1))
}

func (w *world) runUntil(end time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= end && w.res.Err == nil {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.run()
	}
	w.now = max(w.now, end)
}

// up returns the members that run.
func (w *world) up() []*node {
	var out []*node
	for _, n := range w.nodes {
		if n.up && n.core.Members() != nil {
			out = append(out, n)
		}
	}
	return out
}

func (w *world) any() *node {
	up := w.up()
	if len(up) == 0 {
		return nil
	}
	return up[w.chance.IntN(len(up))]
}

func (w *world) leader() *node {
	var best *node
	for _, n := range w.up() {
		if n.core.Decides() && (best == nil || n.core.Term() > best.core.Term()) {
			best = n
		}
	}
	return best
}

// members is the membership as the newest state has it.
func (w *world) members() *consensus.Membership {
	var best *node
	for _, n := range w.up() {
		if best == nil || n.db.Applied().Index > best.db.Applied().Index {
			best = n
		}
	}
	if best == nil {
		return nil
	}
	return best.core.Members()
}

// nemesis does one bad thing, and comes back.
func (w *world) nemesis() {
	if w.calm {
		return
	}
	w.after(w.delay(2*time.Second), w.nemesis)
	n := w.any()
	switch w.chance.IntN(15) {
	case 0:
		w.partition()
	case 1, 2:
		clear(w.severed)
		w.note("partitions end")
	case 3, 4:
		if n != nil {
			n.crash("crash")
		}
	case 5, 6:
		if n != nil {
			n.cutAfter = 1 + w.chance.IntN(30)
		}
	case 7:
		if n != nil {
			n.busyUntil = w.now + w.delay(4*time.Second)
			w.note("n%d pauses until %v", n.id, n.busyUntil)
		}
	case 8:
		if n != nil {
			n.jump = w.chance.IntN(40) - 20
			w.note("n%d's clock jumps %d ticks", n.id, n.jump)
		}
	case 9:
		if n != nil {
			n.syncTakes = w.delay(300 * time.Millisecond)
			w.note("n%d's disk takes %v", n.id, n.syncTakes)
		}
	case 10:
		w.loss, w.twice, w.slow = w.chance.Float64()*0.3, w.chance.Float64()*0.3, w.delay(150*time.Millisecond)
		w.note("network loses %.2f, doubles %.2f, delays %v", w.loss, w.twice, w.slow)
	case 11, 12, 13:
		w.reconfigure()
	case 14:
		w.compact()
	}
}

func (w *world) partition() {
	clear(w.severed)
	side := map[uint64]bool{}
	for _, n := range w.nodes {
		side[n.id] = w.chance.IntN(2) == 0
	}
	oneWay := w.chance.IntN(4) == 0
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if side[a.id] && !side[b.id] {
				w.severed[[2]uint64{a.id, b.id}] = true
				if !oneWay {
					w.severed[[2]uint64{b.id, a.id}] = true
				}
			}
		}
	}
	w.note("partition %d links, one way %v", len(w.severed), oneWay)
}

// reconfigure changes the membership, or who leads.
func (w *world) reconfigure() {
	m, via := w.members(), w.any()
	if m == nil || via == nil {
		return
	}
	voters, learners := m.Voters(), m.Learners()
	switch w.chance.IntN(4) {
	case 0:
		if len(m.Members) >= 7 || len(w.nodes) >= 12 {
			return
		}
		id := uint64(len(w.nodes) + 1)
		w.add(id).start(nil)
		via.change(consensus.Change{Member: consensus.Member{ID: id, PeerURLs: []string{fmt.Sprintf("http://n%d", id)}}}, w.chance.IntN(3) > 0)
	case 1:
		if leader := w.leader(); len(learners) > 0 && leader != nil {
			id := learners[w.chance.IntN(len(learners))]
			if p := leader.core.Progress(); p[id].Match*10 >= p[leader.id].Match*9 && p[id].Match > 0 {
				leader.change(consensus.Change{Member: consensus.Member{ID: id}, Promote: true}, false)
			}
		}
	case 2:
		if len(voters) > 3 {
			via.remove(voters[w.chance.IntN(len(voters))])
		} else if len(learners) > 0 {
			via.remove(learners[w.chance.IntN(len(learners))])
		}
	case 3:
		if leader := w.leader(); leader != nil {
			to := voters[w.chance.IntN(len(voters))]
			w.note("n%d hands over to n%d", leader.id, to)
			leader.core.TransferLeader(to)
			leader.pump()
		}
	}
}

// compact forgets what every watcher has seen.
func (w *world) compact() {
	via := w.any()
	seen := w.newest
	for _, x := range w.watches {
		seen = min(seen, x.next-1)
	}
	if via == nil || seen < 20 {
		return
	}
	via.propose(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: seen - 10}}, nil)
}

// heal ends all faults.
func (w *world) heal() {
	w.calm = true
	w.note("faults end")
	clear(w.severed)
	w.loss, w.twice, w.slow = 0, 0, time.Millisecond
	for _, n := range w.nodes {
		n.cutAfter, n.syncTakes, n.jump, n.busyUntil = 0, 0, 0, min(n.busyUntil, w.now)
		if !n.up && !n.gone {
			n.restart()
		}
	}
}

// judge looks at what is left when all is quiet.
func (w *world) judge() {
	if w.res.Err != nil {
		return
	}
	m := w.members()
	if m == nil {
		w.fail("no member runs")
		return
	}
	var first *node
	for _, e := range m.Members {
		n := w.node(e.ID)
		if n == nil || !n.up {
			w.fail("n%d is a member and does not run", e.ID)
			return
		}
		if first == nil {
			first = n
			continue
		}
		if first.db.Applied() != n.db.Applied() {
			w.fail("n%d has applied %v, n%d %v, %v after the last fault", first.id, first.db.Applied(), n.id, n.db.Applied(), healing)
			return
		}
		a, errA := first.db.HashKV(0)
		b, errB := n.db.HashKV(0)
		if errA != nil || errB != nil || a.Hash != b.Hash {
			w.fail("n%d and n%d differ: %v %v, %v %v", first.id, n.id, a, errA, b, errB)
			return
		}
		if !slices.Equal(first.core.Members().Voters(), n.core.Members().Voters()) {
			w.fail("n%d and n%d have different members", first.id, n.id)
			return
		}
	}
	w.judgeHistory(first)
}

// judgeHistory looks for every acknowledged write in what the watchers saw.
func (w *world) judgeHistory(n *node) {
	for _, x := range w.watches {
		x.goOn(n) // the one that it was at may not be a member any more
		x.drain()
		if rev, _ := n.db.Revision(); x.next <= rev {
			w.fail("a watcher has seen up to %d, the state is at %d", x.next-1, rev)
		}
	}
	for _, c := range w.clients {
		for _, op := range c.ops {
			if !op.Answered || op.Kind == Get || op.Kind == Swap && !op.Swapped || op.Revision == 0 {
				continue
			}
			found := slices.ContainsFunc(w.history[op.Revision], func(e *mvccpb.Event) bool {
				return string(e.Kv.Key) == op.Key && string(e.Kv.Value) == op.Value && (e.Type == mvccpb.Event_DELETE) == (op.Kind == Delete)
			})
			if !found {
				w.fail("%+v was acknowledged, revision %d holds %v", op, op.Revision, w.history[op.Revision])
			}
			w.res.Acknowledged++
		}
	}
}
