package discovery

import (
	"container/heap"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var seeds = flag.Int("seeds", 1000, "how many start orders TestNeverTwoClusters tries")

// sim is a link with devices on virtual time, all random choices from one seed.
type sim struct {
	rnd   *rand.Rand
	now   time.Time
	seq   int
	queue events
	nodes []*simNode
	// chaos: messages are lost and late, devices lose power, also at a write, and
	// the link is cut in two now and then.
	chaos      bool
	loss       float64
	sides      map[ID]bool // nil: one link
	partitions bool
	pace       pace
	tokens     int
	trace      []string
}

type simNode struct {
	sim     *sim
	dev     Device
	voters  int
	disk    []byte // State, as written
	gen     int    // raised when the power goes
	m       *Machine
	member  string // token of its cluster
	genesis *Genesis
	dead    bool
}

type event struct {
	at  time.Time
	seq int
	f   func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (s *sim) after(d time.Duration, f func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now.Add(d), s.seq, f})
}

func (s *sim) run(until time.Duration) {
	for len(s.queue) > 0 && s.queue[0].at.Before(time.Time{}.Add(until)) {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.f()
	}
}

func (s *sim) logf(n *simNode, format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%9.3f %s %s", s.now.Sub(time.Time{}).Seconds(), n.dev.Name, fmt.Sprintf(format, args...)))
}

func newSim(seed uint64, devices, expect int) *sim {
	s := &sim{rnd: rand.New(rand.NewPCG(seed, 7)), loss: 0.2, chaos: true}
	for i := range devices {
		n := &simNode{sim: s, voters: 5, dev: Device{Name: fmt.Sprintf("d%d", i), PeerURLs: []string{fmt.Sprintf("https://10.0.0.%d:2380", i+1)}, Expect: expect}}
		for j := range n.dev.ID {
			n.dev.ID[j] = byte(s.rnd.Uint32())
		}
		n.save(State{ID: n.dev.ID})
		s.nodes = append(s.nodes, n)
	}
	return s
}

func (n *simNode) save(st State) {
	data, err := json.Marshal(st)
	if err != nil {
		panic(err)
	}
	n.disk = data
}

func (n *simNode) on() {
	if n.m != nil || n.member != "" || n.dead {
		return
	}
	var st State
	if err := json.Unmarshal(n.disk, &st); err != nil {
		panic(err)
	}
	n.gen++
	s := n.sim
	n.m = NewMachine(n.dev, n.voters, st, s.now, rand.New(rand.NewPCG(s.rnd.Uint64(), 1)), func(f []Founder) (*Genesis, error) {
		s.tokens++
		return &Genesis{Founding: Founding{Token: fmt.Sprint("cluster-", s.tokens), Founders: f}}, nil
	})
	if s.pace != (pace{}) {
		n.m.pace = s.pace
	}
	s.logf(n, "on")
	n.outcome()
	gen := n.gen
	var tick, announce func()
	tick = func() {
		if n.gen != gen || n.m == nil {
			return
		}
		n.tick()
		s.after(200*time.Millisecond, tick)
	}
	pause := time.Second
	announce = func() {
		if n.gen != gen || n.m == nil {
			return
		}
		for _, o := range s.nodes {
			if o != n {
				s.deliver(n, o, func() {
					if o.m != nil {
						o.m.Announced(n.dev.ID)
					}
					// Members answer.
					s.deliver(o, n, func() {
						if n.m != nil && (o.m != nil || o.member != "") {
							n.m.Announced(o.dev.ID)
						}
					})
				})
			}
		}
		pause = min(2*pause, 16*time.Second)
		s.after(pause, announce)
	}
	s.after(0, tick)
	s.after(0, announce)
}

func (n *simNode) off() {
	if n.m != nil {
		n.sim.logf(n, "off")
		n.m = nil
		n.gen++
	}
}

// keep writes the state, unless the power goes at that very moment, before or
// after; it reports whether the device is still there.
func (n *simNode) keep(save bool) bool {
	if !save {
		return true
	}
	s := n.sim
	cut := s.chaos && s.rnd.Float64() < 0.1
	if cut && s.rnd.Float64() < 0.5 {
		n.reboot()
		return false
	}
	n.save(n.m.State())
	if cut {
		n.reboot()
		return false
	}
	return true
}

func (n *simNode) reboot() {
	n.off()
	n.sim.after(time.Duration(n.sim.rnd.Int64N(int64(8*time.Second))), n.on)
}

func (s *sim) deliver(from, to *simNode, f func()) {
	d := time.Duration(s.rnd.Int64N(int64(20 * time.Millisecond)))
	if s.chaos {
		if s.rnd.Float64() < s.loss || s.sides != nil && s.sides[from.dev.ID] != s.sides[to.dev.ID] {
			return
		}
		if s.rnd.Float64() < 0.1 {
			d = time.Duration(s.rnd.Int64N(int64(3 * time.Second)))
		}
	}
	s.after(d, f)
}

func (n *simNode) tick() {
	s := n.sim
	out, save, err := n.m.Tick(s.now)
	if err != nil {
		panic(err)
	}
	if !n.keep(save) || n.outcome() {
		return
	}
	for _, o := range out {
		n.ask(o)
	}
	if members, _ := n.m.Members(s.now); len(members) > 0 && s.rnd.Float64() < 0.3 {
		n.join(s.node(members[0]))
	}
}

func (s *sim) node(id ID) *simNode {
	for _, n := range s.nodes {
		if n.dev.ID == id {
			return n
		}
	}
	panic("no such device")
}

// ask sends a question; values are copied, as they are on a wire.
func (n *simNode) ask(o Outgoing) {
	s, gen := n.sim, n.gen
	q, to := copyOf(o.Message), s.node(o.To)
	s.deliver(n, to, func() {
		var a Message
		switch {
		case to.member != "":
			a = memberAnswer(to.dev, to.member, to.genesis, q)
		case to.m != nil:
			var save bool
			a, save = to.m.Handle(s.now, q)
			a = copyOf(a)
			if !to.keep(save) {
				return
			}
			to.outcome()
		default:
			return
		}
		s.deliver(to, n, func() {
			if n.gen != gen || n.m == nil {
				return
			}
			if n.keep(n.m.Answered(s.now, copyOf(a))) && !n.outcome() {
				n.tick()
			}
		})
	})
}

func copyOf(m Message) (out Message) {
	data, err := json.Marshal(m)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

func (n *simNode) join(to *simNode) {
	s, gen := n.sim, n.gen
	s.deliver(n, to, func() {
		if token := to.member; token != "" {
			s.deliver(to, n, func() {
				if n.gen == gen && n.m != nil {
					n.become(token, nil)
				}
			})
		}
	})
}

func (n *simNode) outcome() bool {
	if n.m == nil {
		return true
	}
	if g := n.m.Decided(); g != nil {
		n.become(g.Token, g)
		return true
	}
	return false
}

func (n *simNode) become(token string, g *Genesis) {
	n.sim.logf(n, "is of %s, founder %v", token, g != nil)
	n.member, n.genesis, n.m = token, g, nil
	n.gen++
}

// upset makes the chaos of one run.
func (s *sim) upset(until time.Duration) {
	for _, n := range s.nodes {
		s.after(time.Duration(s.rnd.Int64N(int64(until/3))), n.on)
		for range s.rnd.IntN(4) {
			s.after(time.Duration(s.rnd.Int64N(int64(until))), func() {
				if n.m != nil {
					n.reboot()
				}
			})
		}
	}
	for range 3 {
		if !s.partitions {
			break
		}
		at, last := time.Duration(s.rnd.Int64N(int64(until))), time.Duration(s.rnd.Int64N(int64(15*time.Second)))
		s.after(at, func() {
			s.sides = map[ID]bool{}
			for _, n := range s.nodes {
				s.sides[n.dev.ID] = s.rnd.IntN(2) == 0
			}
		})
		s.after(at+last, func() { s.sides = nil })
	}
	s.after(until, func() {
		s.chaos, s.sides = false, nil
		for _, n := range s.nodes {
			n.on()
		}
	})
}

func (s *sim) clusters() (of map[string]int, fresh int) {
	of = map[string]int{}
	for _, n := range s.nodes {
		switch {
		case n.member != "":
			of[n.member]++
		case !n.dead:
			fresh++
		}
	}
	return of, fresh
}

func (s *sim) fail(t *testing.T, seed uint64, format string, args ...any) {
	t.Helper()
	for _, l := range s.trace {
		t.Log(l)
	}
	for _, n := range s.nodes {
		t.Logf("%s %s: %.600s", n.dev.Name, n.dev.ID, n.disk)
	}
	t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
}

// TestNeverTwoClusters: whatever the order in which devices start, lose power
// (also at a write), miss messages, get them late or are cut in two: one cluster
// in the end, and never another.
func TestNeverTwoClusters(t *testing.T) {
	sizes := []struct{ devices, expect int }{{5, 3}, {3, 3}, {4, 3}, {3, 2}, {2, 2}, {1, 1}}
	var longest time.Duration
	for seed := range uint64(*seeds) {
		size := sizes[seed%uint64(len(sizes))]
		s := newSim(seed, size.devices, size.expect)
		s.partitions = true
		if seed/uint64(len(sizes))%2 == 1 {
			// Everybody proposes, all the time, and nothing is ever given up for
			// another's sake: promises alone have to keep them apart.
			s.pace = pace{settle: 200 * time.Millisecond, lone: 5 * time.Second, proposal: 20 * time.Second, turn: 400 * time.Millisecond}
		}
		s.upset(40 * time.Second)
		for until := 40 * time.Second; ; until += time.Second {
			s.run(until)
			of, fresh := s.clusters()
			if len(of) > 1 {
				s.fail(t, seed, "clusters %v", of)
			}
			if len(of) == 1 && fresh == 0 && !s.chaos {
				longest = max(longest, until-40*time.Second)
				break
			}
			if until > 10*time.Minute {
				s.fail(t, seed, "%d devices, clusters %v, %d devices are of none", size.devices, of, fresh)
			}
		}
	}
	t.Logf("the slowest of %d were one cluster %v after the last trouble", *seeds, longest)
}

// TestManyDevices: more devices than are expected, far beyond what the quorums
// alone keep apart, on a link that loses messages.
func TestManyDevices(t *testing.T) {
	for seed := range uint64(*seeds / 10) {
		s := newSim(seed, 10, 3)
		s.upset(40 * time.Second)
		s.run(2 * time.Minute)
		if of, fresh := s.clusters(); len(of) != 1 || fresh != 0 {
			s.fail(t, seed, "clusters %v, %d devices are of none", of, fresh)
		}
	}
}

// TestProposerDies: the device that proposes dies for good at the worst moments;
// the others are one cluster, or wait for as many devices as are expected.
func TestProposerDies(t *testing.T) {
	formed := 0
	for seed := range uint64(200) {
		s := newSim(seed, 4, 3)
		s.chaos = false
		for _, n := range s.nodes {
			s.after(time.Duration(s.rnd.Int64N(int64(3*time.Second))), n.on)
		}
		// The one of lowest id proposes; it dies after a random number of writes.
		first := s.nodes[0]
		for _, n := range s.nodes {
			if n.dev.ID.String() < first.dev.ID.String() {
				first = n
			}
		}
		s.run(4 * time.Second)
		for step := s.rnd.IntN(80); step > 0 && len(s.queue) > 0; step-- {
			s.run(s.queue[0].at.Sub(time.Time{}) + 1)
		}
		died := first.member
		first.off()
		first.dead, first.member = true, ""
		s.run(2 * time.Minute)
		of, fresh := s.clusters()
		if len(of) != 1 || fresh != 0 || died != "" && of[died] != 3 {
			s.fail(t, seed, "clusters %v, %d devices are of none; the dead one was of %q", of, fresh, died)
		}
		if died != "" {
			formed++
		}
	}
	if formed == 0 || formed == 200 {
		t.Errorf("in %d of 200 the device died after it had founded: the moments do not vary", formed)
	}
}

// TestTooFew: less devices than are expected found nothing.
func TestTooFew(t *testing.T) {
	s := newSim(1, 2, 3)
	s.chaos = false
	for _, n := range s.nodes {
		n.on()
	}
	s.run(10 * time.Minute)
	if of, fresh := s.clusters(); len(of) != 0 || fresh != 2 {
		t.Errorf("clusters %v", of)
	}
	if st := s.nodes[0].m.State(); st.Promised != (Ballot{}) {
		t.Errorf("something was promised: %v", st)
	}
}
