package engine

import (
	"errors"
	"io"
	"syscall"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrNotFound: no such container or image.
	ErrNotFound = errors.New("not found")
	// ErrExists: a container of that id is there already.
	ErrExists = errors.New("exists already")
	// ErrNotRunning: the container has no process to signal or to join.
	ErrNotRunning = errors.New("not running")
	// ErrInvalid: the specification cannot be made into a container whatever the
	// state of the device; trying again is of no use before it changes.
	ErrInvalid = errors.New("invalid container")
	// ErrInvalidImageName: a reference that no registry could hold.
	ErrInvalidImageName = errors.New("invalid image name")
	// ErrInUse: the image belongs to a container.
	ErrInUse = errors.New("in use")
	// ErrClosed: the engine is closed.
	ErrClosed = errors.New("engine closed")
)

// State of a container.
type State string

// The states. Unknown means that the shim died and took the exit code with it;
// the processes are gone.
const (
	Created State = "Created"
	Running State = "Running"
	Exited  State = "Exited"
	Unknown State = "Unknown"
)

// Container is a snapshot of one container. Labels is shared: do not change it.
type Container struct {
	ID     string
	Labels map[string]string
	// Image is the reference it was made from; ImageID the digest of the image's
	// configuration.
	Image, ImageID string
	State          State
	// PID of its first process in the daemon's PID namespace; 0 when it has none.
	PID      int
	ExitCode uint32
	// OOMKilled: the kernel killed a process of its cgroup for want of memory.
	OOMKilled  bool
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	// Message says why a container is Unknown or failed to start.
	Message string
	// StopSignal is what a graceful stop sends: the spec's, the image's or SIGTERM.
	StopSignal syscall.Signal
	TTY        bool
	Stdin      bool
	// StdinOnce says that the first client that is given the input ends it.
	StdinOnce bool
}

// EventType says what happened.
type EventType string

const (
	// EventExit: a container's first process ended (it is Exited or Unknown).
	EventExit EventType = "Exit"
	// EventResync: more happened than the channel could hold; look at everything.
	EventResync EventType = "Resync"
)

// Event is a hint that a container changed by itself. ID is empty for a resync.
type Event struct {
	Type EventType
	ID   string
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Streams of an exec. Nil streams are /dev/null; with a TTY Stderr is unused.
// Writers must not block for ever: the process does so with them.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// ExecSpec is a further process in a running container. Env is added to the
// container's own; empty User and Cwd are the container's.
type ExecSpec struct {
	Args []string
	Env  []string
	Cwd  string
	User User
	TTY  bool
}

// Stdio are the daemon's ends of a container's output. Stderr is nil with a TTY. They
// return io.EOF once the container's processes are gone and everything was read, and
// honor Close from another goroutine.
type Stdio struct {
	Stdout, Stderr io.ReadCloser
}

// Close closes what is open.
func (s Stdio) Close() error {
	var errs []error
	for _, c := range []io.Closer{s.Stdout, s.Stderr} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Stats of one container or of a group of them, from its cgroup.
type Stats struct {
	ID                    string
	Time                  time.Time
	CPUUsage              time.Duration // since the container began
	MemoryUsageBytes      uint64
	MemoryLimitBytes      uint64 // 0 is no limit
	MemoryWorkingSetBytes uint64 // usage less inactive file pages
	MemoryRSSBytes        uint64
	PageFaults            uint64
	MajorPageFaults       uint64
	PIDs                  uint64
}
