package pid1

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dogTimeout is what the Pi's watchdog can count at most, and a second less.
	dogTimeout = 14
	dogEvery   = 5 * time.Second
	// How long the machine may go without a sign of life: a start that checks a
	// large card or copies archives off it, a step of the daemon's loop (a card may
	// stall for 12 s), and the end of everything.
	startMax = 10 * time.Minute
	loopMax  = time.Minute
	stopMax  = 2 * time.Minute
)

// watchdog resets the machine when what runs it hangs: it is fed for as long as
// was allowed last, and not longer.
type watchdog struct {
	f io.Writer // nil: there is none

	mu    sync.Mutex
	until time.Time
}

// openWatchdog opens the device at once; from then on it is fed.
func openWatchdog(wanted bool, c *console) *watchdog {
	w := &watchdog{}
	w.allow(startMax)
	if !wanted {
		c.say("the watchdog is off by edged.watchdog=off")
		return w
	}
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		c.say("there is no watchdog: %v", err)
		return w
	}
	c.check("set the watchdog's time", unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, dogTimeout))
	w.f = f
	go w.keep(dogEvery, c)
	return w
}

// allow is a sign of life, good for d.
func (w *watchdog) allow(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = time.Now().Add(d)
}

// keep feeds the watchdog until it may not. Once it was left alone it stays so: a
// machine that hung is not believed again.
func (w *watchdog) keep(every time.Duration, c *console) {
	for {
		if fed, err := w.feed(); err != nil {
			c.check("feed the watchdog", err)
		} else if !fed {
			c.say("no sign of life: the watchdog will reset the machine")
			return
		}
		time.Sleep(every)
	}
}

func (w *watchdog) feed() (fed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().After(w.until) {
		return false, nil
	}
	_, err = w.f.Write([]byte{0})
	return true, err
}
