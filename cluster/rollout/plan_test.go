package rollout

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var now = time.Unix(1e9, 0)

func running() State {
	return State{Format: FormatDaemon, ID: "1", SHA256: "new", Arch: "arm64", Phase: Running}
}

func three() []Device {
	return []Device{
		{Name: "a", Arch: "arm64", Runs: "old", Ready: true, Leads: true},
		{Name: "b", Arch: "arm64", Runs: "old", Ready: true},
		{Name: "c", Arch: "arm64", Runs: "old", Ready: true},
	}
}

func TestDecide(t *testing.T) {
	at := func(name string) State {
		s := running()
		s.Device, s.Since = name, now
		return s
	}
	change := func(f func(d []Device)) []Device {
		d := three()
		f(d)
		return d
	}
	for name, c := range map[string]struct {
		s       State
		devices []Device
		apart   bool
		want    Step
	}{
		"the leader is not first": {running(), three(), false, Step{Do: Begin, Device: "b"}},
		"and the last": {running(), change(func(d []Device) { d[1].Runs, d[2].Runs = "new", "new" }), false,
			Step{Do: Begin, Device: "a"}},
		"all have it":               {running(), change(func(d []Device) { d[0].Runs, d[1].Runs, d[2].Runs = "new", "new", "new" }), false, Step{Do: Complete}},
		"other architectures stay":  {running(), change(func(d []Device) { d[0].Arch, d[1].Arch, d[2].Arch = "arm", "arm", "arm" }), false, Step{Do: Complete}},
		"a device is not Ready":     {running(), change(func(d []Device) { d[2].Ready = false }), false, Step{Do: Wait, Device: "c", Why: "c is not Ready"}},
		"a member is behind":        {running(), three(), true, Step{Do: Wait, Why: "a device has not caught up with the cluster's state"}},
		"a device has not said yet": {running(), change(func(d []Device) { d[0].Runs = "" }), false, Step{Do: Wait, Device: "a", Why: "a has not said what it runs"}},
		"cordon first":              {at("b"), three(), false, Step{Do: Cordon, Device: "b"}},
		"wait for it": {at("b"), change(func(d []Device) { d[1].Cordoned, d[1].Ready = true, false }), true,
			Step{Do: Wait, Device: "b", Why: "b is worked on"}},
		"it has it and is behind": {at("b"), change(func(d []Device) { d[1].Cordoned, d[1].Runs = true, "new" }), true,
			Step{Do: Wait, Device: "b", Why: "b is worked on"}},
		"it has it": {at("b"), change(func(d []Device) { d[1].Cordoned, d[1].Runs = true, "new" }), false, Step{Do: Finish, Device: "b"}},
		"it fell back": {at("b"), change(func(d []Device) { d[1].Failed, d[1].FailedWhy = "1", "not ready" }), false,
			Step{Do: Stop, Device: "b", Why: "b: not ready"}},
		"it fell back another time": {at("b"), change(func(d []Device) { d[1].Failed, d[1].Cordoned = "0", true }), false,
			Step{Do: Wait, Device: "b", Why: "b is worked on"}},
		"it was removed": {at("d"), three(), false, Step{Do: Stop, Device: "d", Why: "d is not in the cluster any more"}},
		"stopped":        {State{Phase: Stopped, SHA256: "new", Arch: "arm64"}, three(), false, Step{Do: Wait}},
		"done":           {State{Phase: Done, SHA256: "new", Arch: "arm64"}, three(), false, Step{Do: Wait}},
	} {
		if got := Decide(c.s, c.devices, !c.apart, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	system := func(device string) State {
		s := at(device)
		s.Format, s.Board, s.Arch = FormatSystem, "rpi", ""
		return s
	}
	boards := func(f func(d []Device)) []Device {
		d := three()
		for i := range d {
			d[i].Board = "rpi"
		}
		f(d)
		return d
	}
	for name, c := range map[string]struct {
		s       State
		devices []Device
		want    Step
	}{
		"who has not said what it runs may be concerned": {system(""), boards(func(d []Device) { d[1].Board, d[1].Runs = "", "" }),
			Step{Do: Wait, Device: "b", Why: "b has not said what it runs"}},
		"other boards stay": {system(""), boards(func(d []Device) { d[0].Runs, d[1].Board, d[2].Board = "new", "amd64", "" }), Step{Do: Complete}},
		"first no new Pods": {system("b"), boards(func(d []Device) { d[1].Pods = 2 }), Step{Do: Cordon, Device: "b"}},
		"then none":         {system("b"), boards(func(d []Device) { d[1].Cordoned, d[1].Pods = true, 2 }), Step{Do: Drain, Device: "b"}},
		"then it may":       {system("b"), boards(func(d []Device) { d[1].Cordoned = true }), Step{Do: Restart, Device: "b"}},
		"Pods that come to a device that restarts": {func() State { s := system("b"); s.Drained = true; return s }(),
			boards(func(d []Device) { d[1].Cordoned, d[1].Pods = true, 1 }), Step{Do: Wait, Device: "b", Why: "b is worked on"}},
	} {
		if got := Decide(c.s, c.devices, true, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	if full := boards(func(d []Device) { d[1].Cordoned, d[1].Pods = true, 2 }); Decide(system("b"), full, true, now.Add(Patience+time.Second)).Do != Stop {
		t.Error("a device whose Pods nobody takes is waited for without end")
	}
	if s := system("b"); s.May("b", true) {
		t.Error("a device may restart under its Pods")
	}
	late := change(func(d []Device) { d[1].Cordoned, d[1].Ready = true, false })
	if got := Decide(at("b"), late, false, now.Add(Patience+time.Second)); got.Do != Stop {
		t.Errorf("a device that is gone for long: %+v", got)
	}
}

// TestOneAtATime lets rollouts run among devices that come, go, fall back and lag:
// never is a second device begun before the first is done, and never a device
// while another is away.
func TestOneAtATime(t *testing.T) {
	completed, stopped := 0, 0
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 0))
		s, devices, clock := running(), three(), now
		if seed%2 == 1 {
			s.Format, s.Board = FormatSystem, "rpi"
			for i := range devices {
				devices[i].Board, devices[i].Pods = "rpi", 3
			}
		}
		var order []string
		for range 400 {
			whole := !slices.ContainsFunc(devices, func(d Device) bool { return !d.Ready }) && rng.IntN(4) > 0
			step := Decide(s, devices, whole, clock)
			i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == step.Device })
			switch step.Do {
			case Begin:
				if s.Device != "" || !whole {
					t.Fatalf("seed %d: %s began, %q at work, whole %v", seed, step.Device, s.Device, whole)
				}
				s.Device, s.Since, s.Drained = step.Device, clock, false
				order = append(order, step.Device)
			case Cordon:
				devices[i].Cordoned = true
			case Drain:
				devices[i].Pods--
			case Restart:
				s.Drained, s.Since = true, clock
			case Finish:
				if s.IsSystem() && devices[i].Pods > 0 {
					t.Fatalf("seed %d: %s restarted under its Pods", seed, step.Device)
				}
				devices[i].Cordoned, s.Device = false, ""
			case Complete:
				s.Phase = Done
			case Stop:
				s.Phase = Stopped
			}
			// The device at work does something, now and then another is away.
			for j := range devices {
				d := &devices[j]
				switch {
				case !s.May(d.Name, d.Cordoned):
				case rng.IntN(30) == 0:
					d.Failed, d.FailedWhy = s.ID, "not ready"
				case rng.IntN(4) == 0:
					d.Runs = "new"
				}
				d.Ready = rng.IntN(8) > 0
			}
			clock = clock.Add(time.Duration(rng.IntN(10)) * time.Second)
		}
		switch s.Phase {
		case Done:
			completed++
			if !slices.Equal(order, []string{"b", "c", "a"}) {
				t.Fatalf("seed %d: the order was %q", seed, order)
			}
		case Stopped:
			stopped++
			if last := order[len(order)-1]; s.Device != last {
				t.Fatalf("seed %d: stopped at %s, the last was %s", seed, s.Device, last)
			}
		}
	}
	if completed == 0 || stopped == 0 {
		t.Errorf("%d rollouts were completed and %d stopped: nothing was shown", completed, stopped)
	}
}
