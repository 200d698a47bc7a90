package clock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Source is a clock that counts by itself.
type Source interface {
	Now() time.Time
	// Set sets it for everybody who reads it.
	Set(time.Time) error
	// Synchronised says whether something disciplines it.
	Synchronised() bool
	// Watch calls set whenever the clock was set by whoever, until ctx ends.
	Watch(ctx context.Context, set func()) error
}

// System is the machine's clock.
type System struct{}

// Now is part of Source.
func (System) Now() time.Time { return time.Now() }

// Set is part of Source.
func (System) Set(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the system's clock: %w", err)
	}
	return nil
}

// Synchronised is part of Source: what an NTP daemon told the kernel.
func (System) Synchronised() bool {
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	return err == nil && t.Status&unix.STA_UNSYNC == 0
}

// Watch is part of Source: the kernel cancels a timer when the clock is set.
func (System) Watch(ctx context.Context, set func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the system's clock: %w", err)
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: 1<<31 - 1}} // fits 32 bits
	buf := make([]byte, 8)
	for {
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil && !errors.Is(err, unix.ECANCELED) {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the system's clock: %w", err)
		}
		_, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			set()
		case err != nil:
			return fmt.Errorf("watch the system's clock: %w", err)
		}
	}
}

// lookAtFile is how often a Simulated clock's file is read.
const lookAtFile = 100 * time.Millisecond

// Simulated is the machine's clock and an offset that a file holds, such as
// "-8760h", with the word synchronised behind it or not. Tests give devices of one
// machine clocks of their own with it. Setting it does not touch the machine's.
type Simulated struct {
	path string

	mu sync.Mutex
	// guarded by mu
	text   string
	offset time.Duration
	synced bool
	moved  bool // by Set, which Watch has yet to tell
}

// Simulate returns the clock that the file at path tells of.
func Simulate(path string) (*Simulated, error) {
	s := &Simulated{path: path}
	_, err := s.read()
	return s, err
}

// read takes up what the file holds, if that is new.
func (s *Simulated) read() (changed bool, err error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(data) == s.text {
		return false, nil
	}
	words := strings.Fields(string(data))
	if len(words) == 0 {
		return false, nil // being written
	}
	offset, err := time.ParseDuration(words[0])
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.path, err)
	}
	s.text, s.offset, s.synced = string(data), offset, len(words) > 1 && words[1] == "synchronised"
	return true, nil
}

// Now is part of Source.
func (s *Simulated) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.offset)
}

// Set is part of Source.
func (s *Simulated) Set(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset, s.moved = t.Round(0).Sub(time.Now().Round(0)), true
	return nil
}

// Synchronised is part of Source.
func (s *Simulated) Synchronised() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// Watch is part of Source.
func (s *Simulated) Watch(ctx context.Context, set func()) error {
	s.mu.Lock()
	s.moved = false // before anybody watched
	s.mu.Unlock()
	t := time.NewTicker(lookAtFile)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		changed, err := s.read()
		if err != nil {
			return err
		}
		s.mu.Lock()
		changed, s.moved = changed || s.moved, false
		s.mu.Unlock()
		if changed {
			set()
		}
	}
}
