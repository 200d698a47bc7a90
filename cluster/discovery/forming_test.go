package discovery

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func newMachine(id byte, expect int) (*Machine, Device) {
	d := Device{ID: ID{id}, Name: fmt.Sprint("d", id), PeerURLs: []string{fmt.Sprintf("https://192.0.2.%d:2380", id)}, Expect: expect}
	return NewMachine(d, 5, State{ID: d.ID}, time.Time{}, rand.New(rand.NewPCG(1, 1)), func(f []Founder) (*Genesis, error) {
		return &Genesis{Founding: Founding{Token: fmt.Sprint("of ", d.Name), Founders: f}}, nil
	}), d
}

// What is promised is to be on disk first, and binds the device's own proposal.
func TestPromiseBindsTheOwnProposal(t *testing.T) {
	m, self := newMachine(1, 2)
	_, other := newMachine(2, 2)
	now := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	m.Answered(at(0), Message{Kind: kindHere, From: other})
	m.Answered(at(2*time.Second), Message{Kind: kindHere, From: other})
	out, save, err := m.Tick(at(3 * time.Second))
	if err != nil || !save || m.own == nil || len(out) != 2 {
		t.Fatalf("no proposal: %v %v %v", out, save, err)
	}
	mine := m.own.ballot
	// Another device's later ballot arrives before the answer to the own one.
	later := Ballot{mine.Round + 1, other.ID}
	a, save := m.Handle(at(3*time.Second), Message{Kind: kindPrepare, From: other, Ballot: later})
	if a.Kind != kindPromise || !save || m.State().Promised != later {
		t.Fatalf("%+v, save %v, promised %v", a, save, m.State().Promised)
	}
	m.Answered(at(3*time.Second), Message{Kind: kindPromise, From: other, Ballot: mine})
	m.Tick(at(3100 * time.Millisecond))
	if st := m.State(); st.Accepted != (Ballot{}) || st.Genesis != nil {
		t.Errorf("%s accepted its own proposal after it promised a later one: %+v", self.Name, st)
	}
	// And no earlier one of anybody is accepted.
	for _, kind := range []string{kindPrepare, kindAccept} {
		a, save = m.Handle(at(4*time.Second), Message{Kind: kind, From: other, Ballot: mine, Quorum: 2, Genesis: &Genesis{}})
		if a.Kind != kindRefused || a.Ballot != later || save {
			t.Errorf("%s: %+v", kind, a)
		}
	}
	a, save = m.Handle(at(4*time.Second), Message{Kind: kindAccept, From: other, Ballot: later, Quorum: 2, Genesis: &Genesis{Founding: Founding{Token: "x"}}})
	if a.Kind != kindAccepted || !save || m.State().Genesis.Token != "x" {
		t.Errorf("%+v, save %v", a, save)
	}
	// Of two, both have accepted now: it is decided, and it is no voter of it.
	if m.Handle(at(4*time.Second), Message{Kind: kindHello, From: other, Accepted: later}); !m.State().Decided || m.Decided() != nil {
		t.Errorf("%+v", m.State())
	}
}

// A proposal that less devices decide than this one expects is refused.
func TestExpectIsKept(t *testing.T) {
	m, _ := newMachine(1, 3)
	_, other := newMachine(2, 1)
	a, save := m.Handle(time.Time{}, Message{Kind: kindAccept, From: other, Ballot: Ballot{9, other.ID}, Quorum: 2, Genesis: &Genesis{}})
	if a.Kind != kindRefused || save {
		t.Errorf("%+v", a)
	}
}

func TestFounders(t *testing.T) {
	from := func(n int) map[ID]Device {
		out := map[ID]Device{}
		for i := range n {
			d := Device{ID: ID{byte(i + 1)}, Name: fmt.Sprint("d", i), PeerURLs: []string{fmt.Sprint("u", i)}}
			out[d.ID] = d
		}
		return out
	}
	for _, c := range []struct{ there, most, want int }{{1, 1, 1}, {2, 2, 1}, {3, 3, 3}, {4, 4, 3}, {5, 3, 3}, {5, 5, 5}, {7, 5, 5}} {
		got := chooseFounders(from(c.there), ID{2}, c.most)
		if len(got) != c.want || c.there > 1 && got[0].ID != (ID{2}) {
			t.Errorf("of %d at most %d: %v", c.there, c.most, got)
		}
	}
	same := from(3)
	twin := same[ID{3}]
	twin.Name = "d0"
	same[ID{3}] = twin
	if got := chooseFounders(same, ID{1}, 3); len(got) != 1 {
		t.Errorf("two with one name: %v", got)
	}
}

// A table full of devices takes no more, and does not forget those it has.
func TestDevicesAreBounded(t *testing.T) {
	m, _ := newMachine(1, 3)
	for i := range 2 * maxDevices {
		m.Announced(ID{2, byte(i >> 8), byte(i)})
	}
	if len(m.devices) != maxDevices {
		t.Errorf("%d devices", len(m.devices))
	}
}
