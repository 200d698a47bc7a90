package nodestatus

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	throttledFile = "devices/platform/soc/soc:firmware/get_throttled"
	pi5File       = "devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
)

func writeSys(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// states are the conditions of a status by type.
func states(s corev1.NodeStatus) map[corev1.NodeConditionType]corev1.ConditionStatus {
	out := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range s.Conditions {
		out[c.Type] = c.Status
	}
	return out
}

func TestPower(t *testing.T) {
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	for name, c := range map[string]struct {
		files             map[string]string
		voltage, throttle corev1.ConditionStatus // "": the board cannot tell
	}{
		"no sensor":            {nil, "", ""},
		"fine":                 {map[string]string{throttledFile: "0\n"}, no, no},
		"under-voltage now":    {map[string]string{throttledFile: "50005\n"}, yes, yes},
		"under-voltage before": {map[string]string{pi5File: "10000\n"}, yes, no},
		"too hot":              {map[string]string{throttledFile: "80008\n"}, no, yes},
		"not a number":         {map[string]string{throttledFile: "what\n"}, "", ""},
		"hwmon fine":           {map[string]string{"class/hwmon/hwmon1/name": "rpi_volt\n", "class/hwmon/hwmon1/in0_lcrit_alarm": "0\n"}, no, ""},
		"hwmon alarm":          {map[string]string{"class/hwmon/hwmon1/name": "rpi_volt\n", "class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"}, yes, ""},
		"another hwmon":        {map[string]string{"class/hwmon/hwmon0/name": "cpu_thermal\n", "class/hwmon/hwmon0/in0_lcrit_alarm": "1\n"}, "", ""},
	} {
		root := t.TempDir()
		for path, text := range c.files {
			writeSys(t, root, path, text)
		}
		var p power
		var s corev1.NodeStatus
		now := time.Now()
		p.look(root, now)
		p.fill(&s, now, metav1.Now())
		if got := states(s); got[UnderVoltage] != c.voltage || got[Throttled] != c.throttle {
			t.Errorf("%s: %v, want under-voltage %q and throttled %q", name, got, c.voltage, c.throttle)
		}
	}
}

// TestPowerComesAndGoes: a supply that is weak now and then changes the Node
// twice, not at every look.
func TestPowerComesAndGoes(t *testing.T) {
	root := t.TempDir()
	var p power
	var s corev1.NodeStatus
	now, changes := time.Unix(1e9, 0), 0
	for minute := range 60 {
		value := "0\n"
		if minute < 30 && minute%3 == 0 {
			value = "10000\n"
		}
		writeSys(t, root, throttledFile, value)
		before := slices.Clone(s.Conditions)
		p.look(root, now)
		p.fill(&s, now, metav1.NewTime(now))
		if !slices.Equal(before, s.Conditions) {
			changes++
		}
		now = now.Add(time.Minute)
	}
	if changes != 2 || states(s)[UnderVoltage] != corev1.ConditionFalse {
		t.Errorf("%d changes, %v at the end", changes, s.Conditions)
	}
}
