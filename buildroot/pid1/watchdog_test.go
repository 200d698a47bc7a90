package pid1

import (
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// dog counts how often it was fed.
type dog struct{ fed atomic.Int64 }

func (d *dog) Write(b []byte) (int, error) {
	d.fed.Add(1)
	return len(b), nil
}

// TestWatchdogIsFedAsLongAsAllowed: a start that takes long, and a step of the loop
// that does, do not reset the machine; one that hangs does.
func TestWatchdogIsFedAsLongAsAllowed(t *testing.T) {
	d := &dog{}
	w := &watchdog{f: d}
	w.allow(time.Hour)
	ended := make(chan struct{})
	go func() {
		w.keep(time.Millisecond, &console{f: os.Stderr})
		close(ended)
	}()
	for d.fed.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	w.allow(-time.Second)
	had := d.fed.Load() // feeding holds the lock
	<-ended
	if got := d.fed.Load(); got != had {
		t.Errorf("fed %d times after it was not allowed any more", got-had)
	}
	if w.allow(time.Hour); w.until.Before(time.Now()) {
		t.Error("a sign of life does not count")
	}
}
