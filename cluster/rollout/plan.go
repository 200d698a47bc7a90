package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Formats of State. A daemon that knows only the first leaves a rollout of systems
// alone.
const (
	FormatDaemon = 1
	FormatSystem = 2
)

// Patience is how long one device may take to be drained, and again to be
// upgraded, before the others are left alone.
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
	Release string `json:"release"` // what the binary or the system calls itself
	// SHA256 is that of what a device runs when it is done: the daemon's binary, or
	// the first RootBytes of its root.
	SHA256 string `json:"sha256"`
	Arch   string `json:"arch,omitempty"` // of the devices that get a daemon
	Source string `json:"source"`         // the device that has it for the others
	Phase  string `json:"phase"`
	// Of a rollout of systems: the board of the devices that get it, and the
	// SHA-256 of the upgrade's file.
	Board     string `json:"board,omitempty"`
	File      string `json:"file,omitempty"`
	RootBytes int64  `json:"rootBytes,omitempty"`
	// Device is worked on since Since; Cordoned says that it was not cordoned
	// before, Drained that its Pods are elsewhere.
	Device   string    `json:"device,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Cordoned bool      `json:"cordoned,omitempty"`
	Drained  bool      `json:"drained,omitempty"`
	Message  string    `json:"message,omitempty"`
}

// IsSystem tells whether devices get a whole system and restart, not a daemon
// alone.
func (s State) IsSystem() bool { return s.Format == FormatSystem }

// May says whether a device may begin: a daemon is replaced while its containers
// go on, a system when its Pods are elsewhere.
func (s State) May(device string, cordoned bool) bool {
	return s.Phase == Running && s.Device == device && cordoned && (s.Drained || !s.IsSystem())
}

// Device is what the leader knows of one.
type Device struct {
	Name, Arch string
	Board      string // of a device whose system can be replaced, and if it has said so
	Runs       string // SHA-256 of what it runs; "": it has not said
	Pods       int    // that are to be elsewhere before it restarts
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
	Wait    Verb = iota
	Begin        // write into the state that Device is worked on
	Cordon       // keep new Pods off Device
	Drain        // evict the Pods of Device
	Restart      // write into the state that Device is drained: it may restart
	Finish       // Device has it: take new Pods again, go on
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
		if s.concerns(d) && d.Runs != s.SHA256 {
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

// concerns says whether a device is among those that get it, or may turn out to be.
func (s State) concerns(d Device) bool {
	if s.IsSystem() {
		return d.Runs == "" || d.Board == s.Board
	}
	return d.Arch == s.Arch
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
		why := fmt.Sprintf("%s was not back in %v", d.Name, Patience)
		if s.IsSystem() && !s.Drained {
			why = fmt.Sprintf("%d Pods of %s were not elsewhere in %v: is it a PodDisruptionBudget, or is there no room?", d.Pods, d.Name, Patience)
		}
		return Step{Do: Stop, Device: d.Name, Why: why}
	case !d.Cordoned:
		return Step{Do: Cordon, Device: d.Name}
	case s.IsSystem() && !s.Drained && d.Pods > 0:
		return Step{Do: Drain, Device: d.Name}
	case s.IsSystem() && !s.Drained:
		return Step{Do: Restart, Device: d.Name}
	}
	return Step{Do: Wait, Device: d.Name, Why: d.Name + " is worked on"}
}
