package discovery

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"edged/cluster/identity"
)

// ID names a device while it belongs to no cluster.
type ID [16]byte

// NewID makes one.
func NewID() (id ID) {
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

func (id ID) String() string               { return hex.EncodeToString(id[:]) }
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what String wrote.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != 2*len(id) {
		return fmt.Errorf("%q is not a device's id", text)
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("%q is not a device's id", text)
	}
	return nil
}

// Ballot orders proposals; the zero one is none.
type Ballot struct {
	Round uint64 `json:"round"`
	By    ID     `json:"by"`
}

func (b Ballot) less(o Ballot) bool {
	return cmp.Or(cmp.Compare(b.Round, o.Round), bytes.Compare(b.By[:], o.By[:])) < 0
}

// Device is what a device says of itself.
type Device struct {
	ID       ID       `json:"id"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
	// Port is where it is spoken to.
	Port uint16 `json:"port"`
	// Expect is its --bootstrap-expect.
	Expect int `json:"expect"`
}

// Founder is one of the first voters.
type Founder struct {
	ID       ID       `json:"id"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
}

// Founding says who the first voters of a cluster are. It holds nothing secret.
type Founding struct {
	// Token sets clusters with the same first addresses apart.
	Token    string    `json:"token"`
	Founders []Founder `json:"founders"`
}

// Has tells whether a device is one of the first voters.
func (f Founding) Has(id ID) bool {
	return slices.ContainsFunc(f.Founders, func(f Founder) bool { return f.ID == id })
}

// Genesis is a cluster's founding, with its keys.
type Genesis struct {
	Founding
	Settings map[string]string `json:"settings"`
	Shared   identity.Shared   `json:"shared"`
}

// Kinds of messages. The first three are questions.
const (
	kindHello    = "hello"
	kindPrepare  = "prepare"
	kindAccept   = "accept"
	kindHere     = "here"     // answers hello
	kindPromise  = "promise"  // answers prepare
	kindAccepted = "accepted" // answers accept
	kindRefused  = "refused"  // a later ballot is promised
	kindDecided  = "decided"  // answers anything
	kindMember   = "member"   // answers anything, from who is of a cluster
)

// Message is what devices say to each other about founding.
type Message struct {
	Kind string `json:"kind"`
	From Device `json:"from"`
	// Ballot is the proposal's in questions and their answers, the one that is
	// promised in a refusal.
	Ballot Ballot `json:"ballot,omitzero"`
	// Accepted is what the sender accepted last.
	Accepted Ballot `json:"accepted,omitzero"`
	// Quorum goes with accept.
	Quorum int `json:"quorum,omitempty"`
	// Genesis goes with accept, with decided, and with a promise of who accepted
	// one.
	Genesis *Genesis `json:"genesis,omitempty"`
	// Known are the fresh devices that the sender knows of.
	Known []ID `json:"known,omitempty"`
	// Cluster names the cluster that the sender is a member of.
	Cluster string `json:"cluster,omitempty"`
}

// State is what a device must not forget.
type State struct {
	ID       ID       `json:"id"`
	Promised Ballot   `json:"promised,omitzero"`
	Accepted Ballot   `json:"accepted,omitzero"`
	Quorum   int      `json:"quorum,omitempty"` // of the accepted proposal
	Genesis  *Genesis `json:"genesis,omitempty"`
	Decided  bool     `json:"decided,omitempty"`
}

const (
	// helloEvery is how often fresh devices ask each other how they are.
	helloEvery = time.Second
	// silentAfter is when a device does not count any more.
	silentAfter = 5 * time.Second
	// maxDevices bounds the table of devices.
	maxDevices = 256
)

// pace is how long a device waits, for the sake of few proposals: nothing that is
// promised rests on it.
type pace struct {
	// settle must have passed without a new device before one proposes; lone for
	// one that knows no other.
	settle, lone time.Duration
	// proposal is what a proposal gets to be decided.
	proposal time.Duration
	// turn is how long the device of next higher id waits for the others.
	turn time.Duration
}

var usualPace = pace{settle: 2 * time.Second, lone: 5 * time.Second, proposal: 6 * time.Second, turn: 4 * time.Second}

// seen is what is known of another device.
type seen struct {
	device   Device
	heard    time.Time // zero: it was announced and has said nothing yet
	asked    time.Time // hello was sent
	accepted Ballot
	cluster  string // it is a member of
}

// proposal is this device's own, under way.
type proposal struct {
	ballot   Ballot
	began    time.Time
	sent     time.Time // the last time to those that have not answered
	quorum   int
	known    map[ID]bool
	promises map[ID]Device
	best     Ballot // the latest that one of them accepted
	value    *Genesis
	accepts  map[ID]bool // nil while promises are collected
}

// Machine is a fresh device's part in founding. One goroutine owns it. Its
// methods report with save that State must be on disk before anything that they
// returned, or return later, is sent.
type Machine struct {
	self   Device
	voters int
	found  func([]Founder) (*Genesis, error)
	rnd    *mathrand.Rand
	pace   pace

	state    State
	devices  map[ID]*seen
	newest   time.Time // when the last new device was heard
	eligible time.Time // since when there are enough; zero: there are not
	round    uint64    // the highest that was seen
	own      *proposal
	notYet   time.Time // for the next proposal
}

// NewMachine starts at now. found makes a Genesis with the given voters.
func NewMachine(self Device, voters int, state State, now time.Time, rnd *mathrand.Rand, found func([]Founder) (*Genesis, error)) *Machine {
	self.ID = state.ID
	return &Machine{self: self, voters: voters, found: found, rnd: rnd, pace: usualPace, state: state, devices: map[ID]*seen{}, newest: now, round: state.Promised.Round}
}

// State is what has to be on disk.
func (m *Machine) State() State { return m.state }

// Decided is what this device has to do: found with the Genesis that it is a
// voter of, or nil.
func (m *Machine) Decided() *Genesis {
	if m.state.Decided && m.state.Genesis.Has(m.self.ID) {
		return m.state.Genesis
	}
	return nil
}

// Members are the devices that can let this one in, most recently heard first,
// and how many clusters they are of.
func (m *Machine) Members(now time.Time) (ids []ID, clusters int) {
	names := map[string]bool{}
	for id, s := range m.devices {
		if s.cluster != "" && now.Sub(s.heard) < 2*silentAfter {
			ids = append(ids, id)
			names[s.cluster] = true
		}
	}
	slices.SortFunc(ids, func(a, b ID) int {
		return cmp.Or(m.devices[b].heard.Compare(m.devices[a].heard), bytes.Compare(a[:], b[:]))
	})
	return ids, len(names)
}

// Fresh are the devices like this one that are there, itself among them, by id.
func (m *Machine) Fresh(now time.Time) []Device {
	out := []Device{m.self}
	for _, s := range m.devices {
		if s.cluster == "" && !s.heard.IsZero() && now.Sub(s.heard) < silentAfter {
			out = append(out, s.device)
		}
	}
	slices.SortFunc(out, func(a, b Device) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out
}

// Expect is how many devices must be there.
func (m *Machine) Expect(now time.Time) int {
	n := 1
	for _, d := range m.Fresh(now) {
		n = max(n, d.Expect)
	}
	return n
}

// Announced says that a device is there, or was heard of.
func (m *Machine) Announced(id ID) {
	if id != m.self.ID && m.devices[id] == nil && len(m.devices) < maxDevices {
		m.devices[id] = &seen{device: Device{ID: id}}
	}
}

// SetSelf replaces what this device says of itself.
func (m *Machine) SetSelf(urls []string) { m.self.PeerURLs = urls }

// hear notes what a message tells of its sender.
func (m *Machine) hear(now time.Time, msg Message) {
	m.Announced(msg.From.ID)
	s := m.devices[msg.From.ID]
	if s == nil {
		return
	}
	if s.heard.IsZero() || now.Sub(s.heard) >= silentAfter {
		m.newest = now
	}
	s.device, s.heard, s.accepted, s.cluster = msg.From, now, msg.Accepted, msg.Cluster
	m.round = max(m.round, msg.Ballot.Round, msg.Accepted.Round)
}

func (m *Machine) message(now time.Time, kind string) Message {
	msg := Message{Kind: kind, From: m.self, Accepted: m.state.Accepted}
	for _, d := range m.Fresh(now) {
		msg.Known = append(msg.Known, d.ID)
	}
	return msg
}

// Handle answers another device's question.
func (m *Machine) Handle(now time.Time, q Message) (answer Message, save bool) {
	m.hear(now, q)
	if m.learn() {
		save = true
	}
	if m.state.Decided {
		answer = m.message(now, kindDecided)
		answer.Genesis = m.state.Genesis
		return answer, save
	}
	switch q.Kind {
	case kindPrepare, kindAccept:
		if q.Ballot.less(m.state.Promised) || q.Kind == kindAccept && (q.Quorum < m.self.Expect || q.Genesis == nil) {
			answer = m.message(now, kindRefused)
			answer.Ballot = m.state.Promised
			return answer, save
		}
		if q.Ballot != m.state.Promised {
			m.state.Promised, save = q.Ballot, true
			m.giveUp(now) // what it proposed itself, it must not accept any more
		}
		if q.Kind == kindPrepare {
			answer = m.message(now, kindPromise)
			answer.Genesis = m.state.Genesis
		} else {
			if q.Ballot != m.state.Accepted {
				m.state.Accepted, m.state.Genesis, m.state.Quorum, save = q.Ballot, q.Genesis, q.Quorum, true
			}
			answer = m.message(now, kindAccepted)
		}
		answer.Ballot = q.Ballot
		return answer, save
	}
	return m.message(now, kindHere), save
}

// Answered takes the answer to a question of this device.
func (m *Machine) Answered(now time.Time, a Message) (save bool) {
	m.hear(now, a)
	switch {
	case m.state.Decided:
	case a.Kind == kindDecided && a.Genesis != nil:
		m.state.Genesis, m.state.Decided, m.own = a.Genesis, true, nil
		return true
	case m.own == nil:
	case a.Kind == kindRefused && m.own.ballot.less(a.Ballot):
		m.giveUp(now)
	case a.Ballot != m.own.ballot:
	case a.Kind == kindPromise && m.own.accepts == nil:
		m.own.promise(a)
	case a.Kind == kindAccepted && m.own.accepts != nil:
		m.own.accepts[a.From.ID] = true
	}
	return m.learn()
}

func (p *proposal) promise(a Message) {
	p.promises[a.From.ID] = a.From
	if a.Genesis != nil && p.best.less(a.Accepted) {
		p.best, p.value = a.Accepted, a.Genesis
	}
	for _, id := range a.Known {
		p.known[id] = true
	}
	p.quorum = max(p.quorum, len(p.known)/2+1)
}

// giveUp ends the own proposal; another may be on its way.
func (m *Machine) giveUp(now time.Time) {
	m.own = nil
	m.notYet = now.Add(m.pace.turn/4 + time.Duration(m.rnd.Int64N(1+int64(m.pace.turn))))
}

// learn finds out whether what this device accepted is decided: its proposer
// accepted it before anybody else was asked to.
func (m *Machine) learn() (save bool) {
	st := &m.state
	if st.Decided || st.Genesis == nil {
		return false
	}
	who := map[ID]bool{m.self.ID: true, st.Accepted.By: true}
	for id, s := range m.devices {
		if s.accepted == st.Accepted {
			who[id] = true
		}
	}
	if m.own != nil && m.own.ballot == st.Accepted {
		for id := range m.own.accepts {
			who[id] = true
		}
	}
	if len(who) < st.Quorum {
		return false
	}
	st.Decided, m.own = true, nil
	return true
}

// Outgoing is a message to a device.
type Outgoing struct {
	To      ID
	Message Message
}

// Tick does what is due at now. It is to be called a few times a second, and
// after Answered.
func (m *Machine) Tick(now time.Time) (out []Outgoing, save bool, err error) {
	for id, s := range m.devices {
		if s.asked.IsZero() || now.Sub(s.asked) >= helloEvery {
			s.asked = now
			out = append(out, Outgoing{id, m.message(now, kindHello)})
		}
	}
	more, save, err := m.propose(now)
	out = append(out, more...)
	slices.SortFunc(out, func(a, b Outgoing) int { return bytes.Compare(a.To[:], b.To[:]) })
	return out, save, err
}

func (m *Machine) propose(now time.Time) (out []Outgoing, save bool, err error) {
	if members, _ := m.Members(now); m.state.Decided || len(members) > 0 {
		m.own, m.eligible = nil, time.Time{}
		return nil, false, nil
	}
	fresh, expect := m.Fresh(now), m.Expect(now)
	settle := m.pace.settle
	if len(fresh) == 1 {
		settle = m.pace.lone
	}
	switch {
	case len(fresh) < expect:
		m.own, m.eligible = nil, time.Time{}
	case m.own != nil && now.Sub(m.own.began) > m.pace.proposal:
		m.giveUp(now)
	case m.own != nil:
		save, err = m.secondPhase(now)
	case now.Sub(m.newest) >= settle:
		if m.eligible.IsZero() {
			m.eligible = now
		}
		save = m.begin(now, fresh, expect)
	}
	if m.own == nil || now.Sub(m.own.sent) < helloEvery {
		return nil, save, err
	}
	m.own.sent = now
	for _, d := range fresh {
		_, promised := m.own.promises[d.ID]
		if d.ID == m.self.ID || m.own.accepts == nil && promised || m.own.accepts[d.ID] {
			continue
		}
		msg := m.message(now, kindPrepare)
		if m.own.accepts != nil {
			msg = m.message(now, kindAccept)
			msg.Genesis, msg.Quorum = m.own.value, m.own.quorum
		}
		msg.Ballot = m.own.ballot
		out = append(out, Outgoing{d.ID, msg})
	}
	return out, save, err
}

// begin makes a proposal if it is this device's turn: that of the lowest id first.
func (m *Machine) begin(now time.Time, fresh []Device, expect int) (save bool) {
	rank := slices.IndexFunc(fresh, func(d Device) bool { return d.ID == m.self.ID })
	if now.Before(m.notYet) || now.Sub(m.eligible) < time.Duration(rank)*m.pace.turn {
		return false
	}
	m.round = max(m.round, m.state.Promised.Round) + 1
	ballot := Ballot{m.round, m.self.ID}
	m.state.Promised = ballot
	m.own = &proposal{
		ballot: ballot, began: now, quorum: expect, known: map[ID]bool{},
		promises: map[ID]Device{}, best: m.state.Accepted, value: m.state.Genesis,
	}
	p := m.message(now, kindPromise)
	p.Genesis = m.state.Genesis
	m.own.promise(p)
	return true
}

// secondPhase asks to accept once enough devices have promised.
func (m *Machine) secondPhase(now time.Time) (save bool, err error) {
	p := m.own
	if p.accepts != nil || len(p.promises) < p.quorum {
		return false, nil
	}
	if p.value == nil {
		if p.value, err = m.found(chooseFounders(p.promises, m.self.ID, min(p.quorum, m.voters))); err != nil {
			m.giveUp(now)
			return false, err
		}
	}
	p.accepts, p.sent = map[ID]bool{m.self.ID: true}, time.Time{}
	m.state.Accepted, m.state.Genesis, m.state.Quorum = p.ballot, p.value, p.quorum
	m.learn()
	return true, nil
}

// chooseFounders takes an odd number of devices, this one first. Of two with one
// name, or at one address, it takes one: the other cannot be of the cluster.
func chooseFounders(from map[ID]Device, self ID, most int) (out []Founder) {
	ids := make([]ID, 0, len(from))
	for id := range from {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ID) int {
		if a == self || b == self {
			return map[bool]int{true: -1, false: 1}[a == self]
		}
		return bytes.Compare(a[:], b[:])
	})
	for _, id := range ids {
		d := from[id]
		same := func(f Founder) bool {
			return f.Name == d.Name || slices.ContainsFunc(f.PeerURLs, func(u string) bool { return slices.Contains(d.PeerURLs, u) })
		}
		if !slices.ContainsFunc(out, same) {
			out = append(out, Founder{ID: id, Name: d.Name, PeerURLs: d.PeerURLs})
		}
	}
	out = out[:min(len(out), most)]
	return out[:len(out)-(1-len(out)%2)]
}
