package clock

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Bound is how far a clock may be off what the devices agree on: several times
	// what a drifting one makes between two questions, and less than what a person
	// notices.
	Bound = 2 * time.Second
	// slack is by how much what was known last may be ahead of the clock: NTP set it
	// back by a little.
	slack = time.Minute
	// gather is how long a new leader waits for all to tell their readings.
	gather = 30 * time.Second
	// soon is when a question is asked again that had no answer.
	soon = 5 * time.Second
	// quick is how long an answer may take and still tell the time.
	quick = time.Second
	// keep is how long a device's reading counts: several of the longest Interval.
	keep = 4 * time.Hour
	// maxReadings is more than a cluster has devices.
	maxReadings = 256
)

// Mode says when the system's clock is set.
type Mode string

// Modes.
const (
	Auto   Mode = "auto"
	Always Mode = "always"
	Never  Mode = "never"
)

// Config says what a Clock is made of.
type Config struct {
	Source Source
	// DataDir is where the last known time is.
	DataDir string
	// Floor is a lower bound of the true time: the build's.
	Floor time.Time
	Mode  Mode
	// Interval is how often the leader is asked now.
	Interval func() time.Duration
	Logger   *slog.Logger
}

// Peers are the other devices.
type Peers interface {
	// Leader is the member that leads, 0 for none; self says that it is this one.
	Leader() (id uint64, self bool)
	// LeaderLost is closed when the leader known now is no more.
	LeaderLost() <-chan struct{}
	// Members is how many devices there are.
	Members() int
	// Ask has Answer answer on another member.
	Ask(ctx context.Context, member uint64, body []byte) ([]byte, error)
}

// Clock is the cluster's time on this device.
type Clock struct {
	cfg    Config
	born   time.Time     // monotonic
	wake   chan struct{} // holds one: this device itself is off
	offset atomic.Int64  // to the source's clock, nanoseconds

	mu sync.Mutex
	// guarded by mu
	unset   bool // nobody knows the time that Now says
	ours    bool // the source's clock was set by nobody but this device
	mine    bool // this device set it, which Watch has yet to tell
	peers   Peers
	leads   bool
	since   time.Time       // when it began to lead
	heard   map[uint64]told // by member, on the leader
	said    int64           // what was agreed, at birth, when all were last told to ask
	off     time.Duration   // of Now to what is agreed, when last looked at
	agreed  Quality         // of what off is to; Unknown for nothing
	wrong   bool            // as the lookers know
	lookers map[*func()]struct{}
}

// told is a member's reading: its clock at this one's birth.
type told struct {
	atBirth int64 // Unix nanoseconds
	quality Quality
	at      time.Time
}

// Open reads what was known last, and has the clock go on from there if it is
// behind.
func Open(cfg Config) *Clock {
	if cfg.Source == nil {
		cfg.Source = System{}
	}
	c := &Clock{cfg: cfg, born: time.Now(), wake: make(chan struct{}, 1), heard: map[uint64]told{}, lookers: map[*func()]struct{}{}}
	floor := cfg.Floor
	if last := lastKnown(cfg.DataDir); last.After(floor) {
		floor = last
	}
	if now := cfg.Source.Now(); !cfg.Source.Synchronised() && now.Before(floor.Add(-slack)) {
		c.unset, c.ours = true, true
		cfg.Logger.Warn("the clock is before the last known time and goes on from there", "clock", now.UTC().Format(time.DateTime), "known", floor.UTC().Format(time.DateTime))
		c.move(floor.Sub(now.Round(0)))
	}
	return c
}

// Now is the cluster's time, as far as this device knows it.
func (c *Clock) Now() time.Time {
	now := c.cfg.Source.Now()
	if off := time.Duration(c.offset.Load()); off != 0 {
		return now.Add(off)
	}
	return now
}

// Close notes the time for the next start.
func (c *Clock) Close() error { return note(c.cfg.DataDir, c.Now()) }

// Status is how this device's clock is.
type Status struct {
	Quality Quality
	// Offset is how far Now is ahead of the system's clock.
	Offset time.Duration
	// Off is how far the system's clock is ahead of what the devices agree on. It
	// is of no meaning unless Agreed.
	Off    time.Duration
	Agreed bool
}

// Status tells how this device's clock is, as of the last question.
func (c *Clock) Status() Status {
	offset := time.Duration(c.offset.Load())
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{Quality: c.quality(), Offset: offset, Off: c.off - offset, Agreed: c.agreed != Unknown}
}

// Wrong says whether the system's clock, which Pods see, is off, and by how much.
func (s Status) Wrong() (off time.Duration, wrong bool) {
	return s.Off, s.Agreed && s.Off.Abs() > Bound
}

// Subscribe has f called when Now has jumped, and when the system's clock was found
// off or right again. f must not call the Clock.
func (c *Clock) Subscribe(f func()) (cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookers[&f] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.lookers, &f)
	}
}

// quality is of what Now says. mu is held.
func (c *Clock) quality() Quality {
	switch {
	case c.cfg.Source.Synchronised():
		return Synchronised
	case c.unset:
		return Unset
	}
	return Set
}

// move has Now go on from by later. mu is held.
func (c *Clock) move(by time.Duration) {
	offset := time.Duration(c.offset.Load())
	if c.cfg.Mode == Always || c.cfg.Mode == Auto && c.ours {
		err := c.cfg.Source.Set(c.cfg.Source.Now().Round(0).Add(offset + by))
		if err == nil {
			c.offset.Store(0)
			c.mine = true
			return
		}
		c.cfg.Logger.Warn("the system's clock is wrong and was not set: Pods see it", "err", err)
	}
	c.offset.Store(int64(offset + by))
}

// Run follows the cluster's time until ctx ends.
func (c *Clock) Run(ctx context.Context, peers Peers) error {
	c.mu.Lock()
	c.peers, c.mine = peers, false // nobody watched until now
	c.mu.Unlock()
	set := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		if err := c.cfg.Source.Watch(ctx, func() {
			select {
			case set <- struct{}{}:
			default:
			}
		}); err != nil {
			c.cfg.Logger.Warn("a clock that is set is noticed late", "err", err)
		}
	})
	var lost <-chan struct{}
	for {
		if id, _ := peers.Leader(); id != 0 && lost == nil {
			lost = peers.LeaderLost()
		}
		wait := time.NewTimer(c.round(ctx))
		select {
		case <-ctx.Done():
		case <-set:
			c.wasSet()
		case <-lost:
			lost = nil
		case <-c.wake:
		case <-wait.C:
		}
		wait.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// wasSet trusts who set the system's clock, unless the others know better.
func (c *Clock) wasSet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mine {
		c.mine = false
		return
	}
	c.offset.Store(0)
	c.unset = c.cfg.Source.Now().Before(c.cfg.Floor)
	c.ours = c.unset
	c.tell()
}

// round compares this device's clock with what is agreed, and returns when to do so
// again.
func (c *Clock) round(ctx context.Context) time.Duration {
	leader, self := c.peers.Leader()
	c.mu.Lock()
	if self != c.leads {
		c.leads, c.since = self, time.Now()
		clear(c.heard)
	}
	if c.offset.Load() != 0 && c.cfg.Source.Synchronised() {
		c.cfg.Logger.Info("the system's clock is synchronised")
		c.offset.Store(0)
		c.unset, c.ours = false, false
		c.tell()
	}
	own := c.quality()
	c.mu.Unlock()
	switch {
	case leader == 0:
		return soon
	case self:
		c.tellAll(ctx, c.lead())
		return c.cfg.Interval()
	}
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	sent, at := c.Now(), time.Now()
	body, err := c.peers.Ask(ctx, leader, question{own, sent.UnixNano()}.encode())
	took := time.Since(at)
	var a answer
	if err == nil {
		a, err = decodeAnswer(body)
	}
	switch {
	case errors.Is(err, errMessage):
		return c.cfg.Interval()
	case err != nil:
		c.cfg.Logger.Debug("the leader did not tell its time", "err", err)
		// An older one never does.
		if ctx.Err() != nil {
			return soon
		}
		return c.cfg.Interval() / 10
	case took > quick || a.quality == Unknown:
		return soon
	}
	theirs := time.Duration(a.now - sent.UnixNano() - int64(took)/2)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follow(reading{theirs + a.offset, a.quality})
	return c.cfg.Interval()
}

// lead follows what is agreed, on the leader, and returns who has to hear of it.
func (c *Clock) lead() (tell []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.decided()
	if !ok {
		return nil
	}
	if c.news(a) {
		c.said = c.atBirth(a)
		tell = slices.Collect(maps.Keys(c.heard))
	}
	c.follow(a)
	return tell
}

// atBirth is what is agreed, at this clock's birth, in Unix nanoseconds. mu is held.
func (c *Clock) atBirth(a reading) int64 {
	return c.Now().UnixNano() + int64(a.offset) - int64(time.Since(c.born))
}

// news says whether what is agreed is not what all were told. mu is held.
func (c *Clock) news(a reading) bool {
	return time.Duration(c.atBirth(a)-c.said).Abs() > Bound
}

// tellAll has members ask now: who does not lead and is asked asks the leader.
func (c *Clock) tellAll(ctx context.Context, members []uint64) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	c.mu.Lock()
	q := question{c.quality(), c.Now().UnixNano()}.encode()
	c.mu.Unlock()
	var asking sync.WaitGroup
	for _, m := range members {
		asking.Go(func() {
			if _, err := c.peers.Ask(ctx, m, q); err != nil {
				c.cfg.Logger.Debug("a member was not told that the time changed", "err", err)
			}
		})
	}
	asking.Wait()
}

// follow takes up what is agreed, as its offset to Now. mu is held.
func (c *Clock) follow(a reading) {
	own := c.quality()
	c.off, c.agreed = -a.offset, a.quality
	if own != Synchronised && a.offset.Abs() > Bound {
		before := c.Now()
		c.move(a.offset)
		if c.offset.Load() == 0 {
			c.cfg.Logger.Warn("the clock was set to what the devices agree on", "clock", before.UTC().Format(time.DateTime), "now", c.Now().UTC().Format(time.DateTime))
		} else {
			c.cfg.Logger.Warn("the system's clock is off what the devices agree on: Pods see it, the cluster does not", "off", -time.Duration(c.offset.Load()), "now", c.Now().UTC().Format(time.DateTime))
		}
		c.off = 0
		defer c.tell()
		if a.offset < 0 {
			if err := notAfter(c.cfg.DataDir, c.Now()); err != nil {
				c.cfg.Logger.Warn("the last known time is in the future", "err", err)
			}
		}
	}
	if a.quality > Unset {
		c.unset = false
	}
	if _, is := (Status{Off: c.off - time.Duration(c.offset.Load()), Agreed: true}).Wrong(); is != c.wrong {
		c.wrong = is
		c.tell()
	}
}

// tell tells the lookers. mu is held.
func (c *Clock) tell() {
	for f := range c.lookers {
		(*f)()
	}
}

// decided is what the devices agree on, as its offset to Now, if enough of them have
// been heard. mu is held.
func (c *Clock) decided() (reading, bool) {
	now, age := c.Now().UnixNano(), int64(time.Since(c.born))
	all := []reading{{0, c.quality()}}
	for id, t := range c.heard {
		if time.Since(t.at) > keep {
			delete(c.heard, id)
			continue
		}
		all = append(all, reading{time.Duration(t.atBirth + age - now), t.quality})
	}
	a := agree(all)
	return a, c.leads && (len(all) >= c.peers.Members() || time.Since(c.since) >= gather)
}

// Answer answers the question of another member.
func (c *Clock) Answer(from uint64, body []byte) ([]byte, error) {
	q, err := decodeQuestion(body)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers == nil || !c.leads {
		c.again() // perhaps it does by now
		return answer{now: c.Now().UnixNano()}.encode(), nil
	}
	if _, known := c.heard[from]; from != 0 && (known || len(c.heard) < maxReadings) {
		c.heard[from] = told{q.now - int64(time.Since(c.born)), q.quality, time.Now()}
	}
	out := answer{now: c.Now().UnixNano()}
	if a, ok := c.decided(); ok {
		out.quality, out.offset = a.quality, a.offset
		if a.offset.Abs() > Bound && c.quality() != Synchronised || c.agreed == Unknown || c.news(a) {
			c.again()
		}
	}
	return out.encode(), nil
}

// again has Run look at once.
func (c *Clock) again() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
