package pid1

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lifeEvery is how often the daemon is asked to say that it lives, and lifeMax
	// how long it may be silent: a card that stalls for 12 s is not a dead device.
	lifeEvery = 10 * time.Second
	lifeMax   = 90 * time.Second
	// trialMax is how long a new slot may take to be ready before the old one is
	// started again: an old board with a slow card and a long log to read is not a
	// broken system.
	trialMax = 5 * time.Minute
	// giveEvery is how long after a failure the kubeconfig is asked for again: a
	// device that starts on a slow card may not answer in time.
	giveEvery  = 10 * time.Second
	backoffMin = time.Second
	backoffMax = time.Minute
)

// daemon is `edged run` and what watches it.
type daemon struct {
	s   *system
	dog *watchdog

	pid      int // 0: not running
	started  time.Time
	lastLife time.Time
	pings    bool      // it has said that it lives at least once
	giveAt   time.Time // when to give the kubeconfig; zero: given, or not wanted
	backoff  time.Duration
	startAt  time.Time
	notify   chan string
	socket   string
}

func newDaemon(s *system, dog *watchdog) *daemon {
	d := &daemon{s: s, dog: dog, notify: make(chan string, 16), socket: "/run/notify", backoff: backoffMin, startAt: time.Now()}
	s.console.check("listen for the daemon", d.listen())
	return d
}

// listen receives sd_notify(3) messages. When nobody takes them the sender
// waits: it is one daemon, and few.
func (d *daemon) listen() error {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	if err := os.Chmod(d.socket, 0o600); err != nil {
		conn.Close()
		return err
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for _, line := range strings.Split(string(buf[:n]), "\n") {
				d.notify <- line
			}
		}
	}()
	return nil
}

// run keeps the daemon running until a signal asks for the machine's end.
func (d *daemon) run(signals <-chan os.Signal) syscall.Signal {
	children := make(chan os.Signal, 1)
	watchChildren(children)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	booted := time.Now()
	for {
		now := time.Now()
		d.dog.allow(loopMax)
		if d.pid == 0 && d.s.dataErr == nil && !d.s.held && !now.Before(d.startAt) {
			d.start(now)
		}
		if d.pings && d.pid != 0 && now.Sub(d.lastLife) > lifeMax {
			d.s.console.say("the daemon is silent since %v: ending it", d.lastLife.Format(time.TimeOnly))
			_ = unix.Kill(d.pid, unix.SIGABRT) // it may be gone already
			d.lastLife = now
		}
		if d.s.trial && now.Sub(booted) > trialMax {
			d.s.console.say("this slot was not ready in %v: back to the other one", trialMax)
			return unix.SIGTERM
		}
		if d.pid != 0 && !d.giveAt.IsZero() && !now.Before(d.giveAt) {
			d.give()
		}
		select {
		case sig := <-signals:
			return sig.(syscall.Signal)
		case <-children:
			d.reap()
		case line := <-d.notify:
			d.heard(line)
		case <-tick.C:
		}
	}
}

func (d *daemon) heard(line string) {
	switch line {
	case "WATCHDOG=1":
		d.lastLife, d.pings = time.Now(), true
	case "READY=1":
		d.backoff = backoffMin
		d.s.console.say("the daemon is ready after %.1f s", time.Since(d.started).Seconds())
		if d.s.config.Kubeconfig == "boot" {
			d.giveAt = time.Now()
		}
		if d.s.trial {
			if err := d.s.markGood(); err != nil {
				d.s.console.check("keep this slot", err)
			} else {
				d.s.console.say("slot %s is kept", d.s.options["edged.slot"])
			}
		}
	}
}

// give puts the kubeconfig on the boot partition, if need be later again.
func (d *daemon) give() {
	err := d.s.giveKubeconfig()
	d.s.console.check("put the kubeconfig on the boot partition", err)
	d.giveAt = time.Time{}
	if err != nil {
		d.giveAt = time.Now().Add(giveEvery)
	}
}

func (d *daemon) start(now time.Time) {
	d.started, d.lastLife, d.pings = now, now, false
	d.startAt = now.Add(d.backoff)
	d.backoff = min(2*d.backoff, backoffMax)
	d.s.console.check("write the daemon's configuration", d.s.daemonConfig())
	p, err := os.StartProcess("/bin/edged", []string{"edged", "run", "--config", configPath}, &os.ProcAttr{
		Dir: "/",
		Env: []string{
			"PATH=/bin:/sbin", "HOME=/", "NOTIFY_SOCKET=" + d.socket,
			"WATCHDOG_USEC=" + strconv.FormatInt(2*lifeEvery.Microseconds(), 10),
		},
		Files: []*os.File{nil, d.s.console.f, d.s.console.f},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		d.s.console.check("start the daemon", err)
		return
	}
	d.pid = p.Pid
	// The reaper below collects it; the handle would only hold a descriptor.
	d.s.console.check("let go of the daemon's handle", p.Release())
}

// reap collects every child that ended: orphans come to PID 1.
func (d *daemon) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid == d.pid {
			d.pid = 0
			d.s.console.say("the daemon ended (%s); it starts again in %v", describe(status), max(0, time.Until(d.startAt)).Round(time.Second))
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return s.Signal().String()
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}

// stop asks the daemon to end and waits for it.
func (d *daemon) stop(limit time.Duration) {
	if d.pid == 0 {
		return
	}
	_ = unix.Kill(d.pid, unix.SIGTERM) // it may be gone already
	for end := time.Now().Add(limit); d.pid != 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		d.reap()
	}
}

// reapAll collects children until none is left.
func (d *daemon) reapAll(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		d.reap()
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			return true
		}
	}
	return false
}

func watchChildren(c chan os.Signal) { signal.Notify(c, unix.SIGCHLD) }
