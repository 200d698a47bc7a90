package nodestatus

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Conditions of a board that can tell how it is powered; others do not have them.
const (
	// UnderVoltage: the supply or its cable is too weak, and cards get damaged.
	UnderVoltage corev1.NodeConditionType = "UnderVoltage"
	// Throttled: the processor runs slower than it could.
	Throttled corev1.NodeConditionType = "Throttled"
)

// powerHolds is how long a condition stays after the last sign: a weak supply
// comes and goes with the load, and each change is a write to every card.
const powerHolds = 10 * time.Minute

// Bits of a Raspberry Pi's get_throttled; those of the upper half say what was
// since it was last read.
const (
	bitUnderVoltage, bitUnderVoltageSince = 1 << 0, 1 << 16
	// frequency capped, throttled, soft temperature limit
	bitsThrottled, bitsThrottledSince = 7 << 1, 7 << 17
)

// power remembers when the board last complained.
type power struct {
	underVoltage, throttled complaint
}

type complaint struct {
	known bool // the board can tell
	last  time.Time
}

func (c *complaint) note(is bool, now time.Time) {
	c.known = true
	if is {
		c.last = now
	}
}

func (c complaint) holds(now time.Time) bool {
	return !c.last.IsZero() && now.Sub(c.last) < powerHolds
}

// look reads what the board says below sys. The firmware's own word is best;
// rpi_volt of hwmon knows of the voltage only.
func (p *power) look(sys string, now time.Time) {
	paths, err := filepath.Glob(filepath.Join(sys, "devices/platform/soc*/*:firmware/get_throttled"))
	if err == nil && len(paths) > 0 {
		if v, err := strconv.ParseUint(strings.TrimPrefix(readLine(paths[0]), "0x"), 16, 32); err == nil {
			p.underVoltage.note(v&(bitUnderVoltage|bitUnderVoltageSince) != 0, now)
			p.throttled.note(v&(bitsThrottled|bitsThrottledSince) != 0, now)
			return
		}
	}
	sensors, err := filepath.Glob(filepath.Join(sys, "class/hwmon/hwmon*/name"))
	if err != nil {
		return
	}
	for _, s := range sensors {
		if readLine(s) != "rpi_volt" {
			continue
		}
		if alarm, err := os.ReadFile(filepath.Join(filepath.Dir(s), "in0_lcrit_alarm")); err == nil {
			p.underVoltage.note(strings.TrimSpace(string(alarm)) == "1", now)
		}
	}
}

// fill writes the conditions that the board can tell.
func (p *power) fill(s *corev1.NodeStatus, now time.Time, at metav1.Time) {
	if p.underVoltage.known {
		condition(s, UnderVoltage, p.underVoltage.holds(now), "SupplyTooWeak", "SupplyIsEnough",
			"the voltage fell below what the board needs within 10 minutes: use a better supply or cable", "the voltage is what the board needs", at)
	}
	if p.throttled.known {
		condition(s, Throttled, p.throttled.holds(now), "SlowedDown", "FullSpeed",
			"the processor was slowed down within 10 minutes, for heat or voltage", "the processor is not slowed down", at)
	}
}
