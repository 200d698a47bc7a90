package pid1

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/input-event-codes.h.
const (
	eventKey = 1
	keyPower = 116
)

// An input_event begins with a time of two longs; type, code and value follow.
const (
	eventType  = 2 * unsafe.Sizeof(uintptr(0))
	eventBytes = eventType + 8
)

// followPowerButtons asks for power-off when a button for that is pressed: a
// hypervisor's, a PC's, a Raspberry Pi 5's. Buttons that come later are not seen.
func followPowerButtons(signals chan<- os.Signal, c *console) {
	paths, err := filepath.Glob("/dev/input/event*")
	c.check("look for power buttons", err)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			c.check("open a button", err)
			continue
		}
		go func() {
			defer f.Close()
			for event := make([]byte, eventBytes); ; {
				if _, err := f.Read(event); err != nil {
					return // unplugged
				}
				if pressed(event) {
					c.say("the power button was pressed")
					signals <- unix.SIGUSR2
				}
			}
		}()
	}
}

// pressed: the power key goes down.
func pressed(event []byte) bool {
	e := event[eventType:]
	return binary.NativeEndian.Uint16(e) == eventKey && binary.NativeEndian.Uint16(e[2:]) == keyPower && binary.NativeEndian.Uint32(e[4:]) == 1
}
