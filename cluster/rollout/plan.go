package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Format is that of State.
const Format = 1

// Patience is how long one device may take before the others are left alone.
const Patience = 10 * time.Minute

// Phases of a rollout.
const (
	Running = "running"
	Stopped = "stopped" // a device failed: nobody goes on
	Done    = "done"
)

// State is a rollout as the cluster keeps it.
type State struct {
	Format  int    `json:"format"`
	ID      string `json:"id"`      // tells one attempt from the next
	Release string `json:"release"` // what the binary calls itself
	SHA256  string `json:"sha256"`
	Arch    string `json:"arch"`   // of the devices that get it
	Source  string `json:"source"` // the device that has it for the others
	Phase   string `json:"phase"`
	// Device is worked on since Since; Cordoned says that it was not cordoned
	// before.
	Device   string    `json:"device,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Cordoned bool      `json:"cordoned,omitempty"`
	Message  string    `json:"message,omitempty"`
}

// Device is what the leader knows of one.
type Device struct {
	Name, Arch string
	Runs       string // SHA-256 of the binary that it runs; "": it has not said
	Failed     string // ID of the attempt that it gave up, and why
	FailedWhy  string
	Ready      bool
	Cordoned   bool
	Leads      bool
}

// Verb is what is to be done.
type Verb int

// The verbs, in the order in which a device meets them.
const (
	Wait   Verb = iota
	Begin       // write into the state that Device is worked on
	Cordon      // keep new Pods off Device
	Finish      // Device has it: take new Pods again, go on
	Complete
	Stop
)

// Step is a decision.
type Step struct {
	Do     Verb
	Device string
	Why    string
}

// Decide says what comes next. whole: every member of the store is heard and has
// caught up.
func Decide(s State, devices []Device, whole bool, now time.Time) Step {
	if s.Phase != Running {
		return Step{Do: Wait}
	}
	if s.Device != "" {
		return atWork(s, devices, whole, now)
	}
	var todo []Device
	for _, d := range devices {
		if d.Arch == s.Arch && d.Runs != s.SHA256 {
			todo = append(todo, d)
		}
	}
	if len(todo) == 0 {
		return Step{Do: Complete}
	}
	for _, d := range devices {
		if !d.Ready {
			return Step{Do: Wait, Device: d.Name, Why: d.Name + " is not Ready"}
		}
	}
	if !whole {
		return Step{Do: Wait, Why: "a device has not caught up with the cluster's state"}
	}
	for _, d := range todo {
		if d.Runs == "" {
			return Step{Do: Wait, Device: d.Name, Why: d.Name + " has not said what it runs"}
		}
	}
	// The leader last: each change of leaders costs a second.
	slices.SortStableFunc(todo, func(a, b Device) int {
		if a.Leads != b.Leads {
			if a.Leads {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return Step{Do: Begin, Device: todo[0].Name}
}

// atWork looks at the device that is worked on.
func atWork(s State, devices []Device, whole bool, now time.Time) Step {
	i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == s.Device })
	if i < 0 {
		return Step{Do: Stop, Device: s.Device, Why: s.Device + " is not in the cluster any more"}
	}
	d := devices[i]
	switch {
	case d.Failed == s.ID:
		return Step{Do: Stop, Device: d.Name, Why: d.Name + ": " + d.FailedWhy}
	case d.Runs == s.SHA256 && d.Ready && whole:
		return Step{Do: Finish, Device: d.Name}
	case now.Sub(s.Since) > Patience:
		return Step{Do: Stop, Device: d.Name, Why: fmt.Sprintf("%s was not back in %v", d.Name, Patience)}
	case !d.Cordoned:
		return Step{Do: Cordon, Device: d.Name}
	}
	return Step{Do: Wait, Device: d.Name, Why: d.Name + " is worked on"}
}
