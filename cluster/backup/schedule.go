package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Snapshot is a copy of the state. It must be closed.
type Snapshot interface {
	WriteTo(io.Writer) (int64, error)
	Close() error
}

// Config says what a Schedule does.
type Config struct {
	Interval time.Duration
	Keep     int
	Place    Place
	// Revision is the newest one of the state.
	Revision func() int64
	Take     func() (Snapshot, error)
	Now      func() time.Time
	Logger   *slog.Logger
}

const (
	// The first attempt after a failure is firstRetry later, the next twice that,
	// and so on up to lastRetry: a device that is to keep them may be starting.
	firstRetry, lastRetry = 10 * time.Second, 5 * time.Minute
	// patience is what an attempt may take, at least.
	patience = 10 * time.Minute
)

// Schedule takes snapshots.
type Schedule struct {
	cfg  Config
	last int64 // the revision that Run took last, 0 for none; Run's

	mu     sync.Mutex
	status Status
}

// Status is what came of a schedule so far.
type Status struct {
	Place string `json:"place"`
	// Newest is the newest snapshot in the place, as far as this device knows.
	Newest *Entry `json:"newest,omitempty"`
	// Failures counts attempts since the last one that succeeded, Error says what
	// was wrong with the last.
	Failures int    `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`
}

// New makes a schedule; Run follows it.
func New(cfg Config) *Schedule {
	return &Schedule{cfg: cfg, status: Status{Place: cfg.Place.String()}}
}

// Status tells what came of it so far.
func (s *Schedule) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run takes snapshots until ctx ends. What failed is logged once, and again when
// it works.
func (s *Schedule) Run(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := s.step(ctx)
		if ctx.Err() != nil {
			return
		}
		s.record(err)
		select {
		case <-ctx.Done():
		case <-time.After(next):
		}
	}
}

func (s *Schedule) record(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && s.status.Failures == 0:
		s.cfg.Logger.Warn("a scheduled snapshot failed; more failures are shown by `edged status` only", "place", s.status.Place, "err", err)
	case err == nil && s.status.Failures > 0:
		s.cfg.Logger.Info("scheduled snapshots work again", "place", s.status.Place)
	}
	if err == nil {
		s.status.Failures, s.status.Error = 0, ""
		return
	}
	s.status.Failures++
	s.status.Error = err.Error()
}

// step takes a snapshot if one is due, and says when to look again.
func (s *Schedule) step(ctx context.Context) (next time.Duration, err error) {
	c := s.cfg
	// A device that stopped in the middle must not hold up all that come after.
	ctx, cancel := context.WithTimeout(ctx, max(c.Interval, patience))
	defer cancel()
	there, err := c.Place.List(ctx)
	if err != nil {
		return s.retry(), err
	}
	now := c.Now()
	if len(there) > 0 {
		newest := there[len(there)-1]
		s.keepNewest(newest)
		// One from the future was taken before the clock was set right.
		if age := now.Sub(newest.Taken); age >= 0 && age < c.Interval {
			return c.Interval - age, nil
		}
		if rev := c.Revision(); newest.Revision == rev || s.last == rev {
			return c.Interval, nil // nothing changed: nothing is written
		}
	}
	e, err := s.take(ctx, now)
	if err != nil {
		return s.retry(), err
	}
	s.last = e.Revision
	s.keepNewest(e)
	return c.Interval, s.prune(ctx, e.Name)
}

// retry is how long after another failure the next attempt is.
func (s *Schedule) retry() time.Duration {
	return min(firstRetry<<min(s.Status().Failures, 10), lastRetry, s.cfg.Interval)
}

func (s *Schedule) keepNewest(e Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Newest = &e
}

func (s *Schedule) take(ctx context.Context, now time.Time) (e Entry, err error) {
	// The name promises this much; the snapshot may hold more.
	e = Entry{Revision: s.cfg.Revision(), Taken: now.UTC().Truncate(time.Second)}
	e.Name = nameOf(e.Revision, e.Taken)
	snap, err := s.cfg.Take()
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	err = s.cfg.Place.Put(ctx, e.Name, func(w io.Writer) error {
		sum := sha256.New()
		n, err := snap.WriteTo(io.MultiWriter(w, sum))
		if err == nil {
			_, err = w.Write(sum.Sum(nil))
		}
		e.Bytes = n + sha256.Size
		return err
	})
	return e, err
}

// prune removes what is beyond the number to keep, but not the newest.
func (s *Schedule) prune(ctx context.Context, newest string) error {
	there, err := s.cfg.Place.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	excess := len(there) - s.cfg.Keep
	for _, e := range there {
		if excess <= 0 {
			break
		}
		if e.Name != newest {
			errs = append(errs, s.cfg.Place.Remove(ctx, e.Name))
			excess--
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("old snapshots: %w", err)
	}
	return nil
}
