package pid1

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dogTimeout is what the Pi's watchdog can count at most, and a second less.
	dogTimeout = 14
	dogEvery   = 5 * time.Second
)

// watchdog resets the machine if this process stops feeding it.
type watchdog struct{ f *os.File }

// openWatchdog opens the device at once; from then on somebody must feed it.
func openWatchdog(wanted bool, c *console) *watchdog {
	if !wanted {
		c.say("the watchdog is off by edged.watchdog=off")
		return &watchdog{}
	}
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		c.say("there is no watchdog: %v", err)
		return &watchdog{}
	}
	c.check("set the watchdog's time", unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, dogTimeout))
	return &watchdog{f}
}

// feed is called every dogEvery.
func (w *watchdog) feed() error {
	if w.f == nil {
		return nil
	}
	_, err := w.f.Write([]byte{0})
	return err
}
