package clock_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edged/cluster/clock"
)

const year = 365 * 24 * time.Hour

// machine is a clock that tests set.
type machine struct {
	mu     sync.Mutex
	ahead  time.Duration
	synced bool
	locked bool // nobody may set it
	told   func()
	sets   int
}

func (m *machine) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.ahead)
}

func (m *machine) Set(t time.Time) error {
	m.mu.Lock()
	if m.locked {
		m.mu.Unlock()
		return os.ErrPermission
	}
	m.ahead, m.sets = t.Round(0).Sub(time.Now().Round(0)), m.sets+1
	told := m.told
	m.mu.Unlock()
	if told != nil {
		told()
	}
	return nil
}

func (m *machine) Synchronised() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced
}

func (m *machine) Watch(ctx context.Context, set func()) error {
	m.mu.Lock()
	m.told = set
	m.mu.Unlock()
	<-ctx.Done()
	return nil
}

// change is what a person or NTP does.
func (m *machine) change(ahead time.Duration, synced bool) {
	m.mu.Lock()
	m.ahead, m.synced = ahead, synced
	told := m.told
	m.mu.Unlock()
	if told != nil {
		told()
	}
}

// device is one of a fleet.
type device struct {
	*clock.Clock
	id uint64
	m  *machine
	f  *fleet
}

// fleet is devices whose messages take no time.
type fleet struct {
	t       *testing.T
	mu      sync.Mutex
	leader  uint64
	lost    chan struct{}
	devices []*device
	absent  atomic.Int32 // members that never ask
}

// newFleet starts a device for each machine; nil is a member that is not there.
func newFleet(t *testing.T, mode clock.Mode, machines ...*machine) *fleet {
	f := &fleet{t: t, leader: 1, lost: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i, m := range machines {
		if m == nil {
			f.absent.Add(1)
			continue
		}
		d := &device{clock.Open(clock.Config{
			Source: m, DataDir: t.TempDir(), Floor: time.Now().Add(-10 * year), Mode: mode, Interval: func() time.Duration { return 10 * time.Minute }, Logger: slog.New(slog.DiscardHandler),
		}), uint64(i + 1), m, f}
		f.devices = append(f.devices, d)
	}
	for _, d := range f.devices {
		running.Go(func() {
			if err := d.Run(ctx, d); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return f
}

func (d *device) Leader() (uint64, bool) {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	return d.f.leader, d.f.leader == d.id
}

func (d *device) LeaderLost() <-chan struct{} {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	return d.f.lost
}

func (d *device) Members() int { return len(d.f.devices) + int(d.f.absent.Load()) }

func (d *device) Ask(_ context.Context, id uint64, body []byte) ([]byte, error) {
	return d.f.devices[id-1].Answer(d.id, body)
}

// elect makes another device the leader.
func (f *fleet) elect(id uint64) {
	f.mu.Lock()
	old := f.lost
	f.leader, f.lost = id, make(chan struct{})
	f.mu.Unlock()
	close(old)
}

// agree fails unless all clocks are within Bound of ahead of the true time.
func (f *fleet) agree(when string, ahead time.Duration) {
	f.t.Helper()
	synctest.Wait()
	for _, d := range f.devices {
		if off := d.Now().Round(0).Sub(time.Now().Round(0)) - ahead; off.Abs() > clock.Bound {
			f.t.Errorf("%s: device %d is %v off, %+v", when, d.id, off, d.Status())
		}
	}
}

func (f *fleet) sleep(d time.Duration) { time.Sleep(d); synctest.Wait() }

// TestMedian: who is followed.
func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		name     string
		machines []*machine
		want     time.Duration
	}{
		{"two right, one a year ahead", []*machine{{ahead: year}, {}, {}}, 0},
		{"two right, one a year behind", []*machine{{}, {ahead: -year}, {}}, 0},
		{"two: the later", []*machine{{}, {ahead: year}}, year},
		{"one synchronised", []*machine{{ahead: year}, {ahead: year}, {synced: true}}, 0},
		{"one at 1970", []*machine{{ahead: -50 * year}, {}, {}}, 0},
		{"all but one at 1970", []*machine{{ahead: -50 * year}, {ahead: -50 * year}, {}}, 0},
		{"all at 1970", []*machine{{ahead: -50 * year}, {ahead: -51 * year}, {ahead: -49 * year}}, -10 * year},
		{"a little apart", []*machine{{}, {ahead: time.Second}, {ahead: -time.Second}}, 0},
	} {
		for _, mode := range []clock.Mode{clock.Auto, clock.Always, clock.Never} {
			t.Run(tt.name+" "+string(mode), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var own []*machine
					for _, m := range tt.machines {
						own = append(own, &machine{ahead: m.ahead, synced: m.synced})
					}
					f := newFleet(t, mode, own...)
					f.sleep(time.Minute)
					f.agree("a minute after the start", tt.want)
					for i, m := range own {
						changed := m.ahead != tt.machines[i].ahead
						unset := tt.machines[i].ahead < -10*year
						wrong := (tt.machines[i].ahead - tt.want).Abs() > clock.Bound
						if may := mode == clock.Always && wrong || mode == clock.Auto && unset; changed != may {
							t.Errorf("device %d: its system's clock was set: %v, want %v", i+1, changed, may)
						}
						if _, off := f.devices[i].Status().Wrong(); off != (wrong && !changed) {
							t.Errorf("device %d: said to be off: %v (%+v)", i+1, off, f.devices[i].Status())
						}
					}
				})
			})
		}
	}
}

// TestClockIsSet: a clock that jumps is put right at once, and one that NTP put
// right needs no offset any more.
func TestClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, clock.Auto, &machine{}, &machine{}, &machine{})
		f.sleep(time.Minute)
		for _, d := range []*device{f.devices[0], f.devices[2]} { // the leader, and another
			told := 0
			defer d.Subscribe(func() { told++ })()
			d.m.change(-year, false)
			f.sleep(time.Second)
			f.agree("a second after a jump back", 0)
			if s := d.Status(); s.Offset != year || s.Off != -year || d.m.sets > 0 || told < 1 {
				t.Errorf("%+v, told %d times", s, told)
			}
			d.m.change(0, true)
			f.sleep(time.Second)
			f.agree("after NTP", 0)
			if s := d.Status(); s.Offset != 0 || s.Off != 0 || s.Quality != clock.Synchronised || told < 2 {
				t.Errorf("%+v, told %d times", s, told)
			}
			d.m.change(0, false)
		}
		// NTP that slews tells nobody.
		d := f.devices[1]
		d.m.change(-year, false)
		f.sleep(time.Second)
		d.m.mu.Lock()
		d.m.ahead, d.m.synced = 0, true
		d.m.mu.Unlock()
		f.sleep(11 * time.Minute)
		f.agree("after a quiet correction", 0)
	})
}

// TestUnsetIsSetAgain: who had no time takes what there is, and better later.
func TestUnsetIsSetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, clock.Auto, &machine{ahead: -50 * year}, &machine{ahead: year}, &machine{ahead: year})
		f.sleep(time.Minute)
		f.agree("before NTP", year)
		f.devices[2].m.change(0, true)
		f.sleep(time.Second)
		f.agree("a second after NTP", 0)
		if s := f.devices[0].Status(); s.Offset != 0 || f.devices[0].m.sets != 3 {
			t.Errorf("the system's clock was set %d times: %+v", f.devices[0].m.sets, s)
		}
		f.devices[0].m.change(-2*year, false) // a person did
		f.sleep(time.Second)
		f.agree("a wrong clock by hand", 0)
		if s := f.devices[0].Status(); s.Offset != 2*year {
			t.Errorf("what a person set was set: %+v", s)
		}
	})
}

// TestSynchronisedAgainstAll: who has NTP follows nobody, and all follow.
func TestSynchronisedAgainstAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, clock.Never, &machine{}, &machine{}, &machine{ahead: 3 * time.Hour})
		f.sleep(time.Minute)
		f.agree("without NTP", 0)
		f.devices[2].m.change(3*time.Hour, true)
		f.sleep(time.Second)
		f.agree("NTP says three hours more", 3*time.Hour)
		f.elect(3)
		f.sleep(11 * time.Minute)
		f.agree("and it leads", 3*time.Hour)
		f.devices[0].m.change(0, true) // two that disagree: both are right, and one is said to be off
		f.sleep(11 * time.Minute)
		if s := f.devices[0].Status(); s.Offset != 0 {
			t.Errorf("a synchronised clock has an offset: %+v", s)
		}
		if _, off := f.devices[0].Status().Wrong(); !off {
			t.Errorf("nobody is told that two time servers disagree: %+v", f.devices[0].Status())
		}
	})
}

// TestSilentMember: a leader does not wait for ever for one that is away, and who
// asks a device that does not lead is told nothing.
func TestSilentMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, clock.Auto, &machine{}, &machine{ahead: -50 * year}, nil)
		f.sleep(20 * time.Second)
		if s := f.devices[1].Status(); s.Agreed {
			t.Errorf("agreed with two of three heard: %+v", s)
		}
		f.sleep(20 * time.Second)
		f.absent.Store(0)
		f.agree("after the wait", 0)
		b, err := f.devices[1].Answer(1, append([]byte{1, 2}, make([]byte, 8)...))
		if err != nil || b[1] != byte(clock.Unknown) {
			t.Errorf("one that does not lead answers %v, %v", b, err)
		}
	})
}

func TestUnderstandsLaterVersionsOnly(t *testing.T) {
	c := clock.Open(clock.Config{Source: &machine{}, DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	for _, b := range [][]byte{nil, {1, 2}, append([]byte{0, 2}, make([]byte, 8)...), append([]byte{1, 9}, make([]byte, 8)...)} {
		if _, err := c.Answer(1, b); err == nil {
			t.Errorf("%v was answered", b)
		}
	}
	if _, err := c.Answer(1, append([]byte{2, 2}, make([]byte, 20)...)); err != nil {
		t.Errorf("a later version: %v", err)
	}
}

// TestLastKnown: a clock never runs before what was known, whether the stop was
// orderly or not, and a future that was a mistake is forgotten.
func TestLastKnown(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().Truncate(time.Second)
	open := func(ahead time.Duration) *clock.Clock {
		return clock.Open(clock.Config{Source: &machine{ahead: ahead, locked: true}, DataDir: dir, Floor: now.Add(-year), Mode: clock.Auto, Logger: slog.New(slog.DiscardHandler)})
	}
	is := func(what string, c *clock.Clock, want time.Duration) {
		t.Helper()
		if off := c.Now().Round(0).Sub(now.Add(want)); off < -time.Second || off > time.Minute {
			t.Errorf("%s: off by %v", what, off)
		}
	}
	is("first start at 1970: the build's time", open(-50*year), -year)
	c := open(0)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	is("after an orderly stop", open(-50*year), 0)
	is("a later clock", open(year), year)
	if err := os.MkdirAll(filepath.Join(dir, "store", "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	segment := filepath.Join(dir, "store", "wal", "1")
	later := now.Add(time.Hour)
	if err := errors.Join(os.WriteFile(segment, nil, 0o644), os.Chtimes(segment, later, later)); err != nil {
		t.Fatal(err)
	}
	is("after a power cut", open(-50*year), time.Hour)
	is("a little behind it", open(time.Hour-10*time.Second), time.Hour-10*time.Second)
	future := now.Add(9 * year)
	if err := os.Chtimes(segment, future, future); err != nil {
		t.Fatal(err)
	}
	is("a clock that was wrong once", open(0), 9*year)
	right := clock.Open(clock.Config{Source: &machine{synced: true}, DataDir: dir, Floor: now.Add(-year), Logger: slog.New(slog.DiscardHandler)})
	is("a synchronised clock is right", right, 0)
	if err := right.Close(); err != nil {
		t.Fatal(err)
	}
	is("the mistake is forgotten", open(-50*year), 0)
}

func TestSimulated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("-8760h\n")
	s, err := clock.Simulate(path)
	if err != nil {
		t.Fatal(err)
	}
	if off := time.Until(s.Now()) + year; off.Abs() > time.Second || s.Synchronised() {
		t.Errorf("%v off, synchronised %v", off, s.Synchronised())
	}
	set := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Watch(ctx, func() { set <- struct{}{} }) }()
	write("0s synchronised")
	<-set
	if off := time.Until(s.Now()); off.Abs() > time.Second || !s.Synchronised() {
		t.Errorf("%v off, synchronised %v", off, s.Synchronised())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	write("soon")
	if _, err := clock.Simulate(path); err == nil {
		t.Error("a file that tells nothing was taken")
	}
}
