package pid1

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Paths of the running system.
const (
	dataMount = "/var"
	dataDir   = dataMount + "/lib/edged"
	// stateDir is PID 1's own: the daemon's folder is the daemon's alone.
	stateDir   = dataMount + "/lib/device"
	configPath = "/run/edged.yaml"
	// rebootFile holds the argument of the next reboot, such as "0 tryboot".
	rebootFile = "/run/reboot-argument"
)

// system is what PID 1 knows of the machine it runs on.
type system struct {
	options map[string]string // of the kernel's command line
	console *console
	config  Config
	boot    bootMedium
	net     *network
	dataErr error // why there is no data partition
	held    bool  // the daemon is not started
	trial   bool  // this slot has not been ready yet
}

// Main is PID 1; it does not return.
func Main() {
	c := openConsole()
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "edged init: this is the first process of edged's image; it is not started by hand")
		os.Exit(2)
	}
	if inRAM() {
		c.check("start from the RAM disk", stage0(c))
		time.Sleep(10 * time.Second) // for a person to read it
		reboot("")
	}
	s := &system{console: c}
	s.run()
}

// run is the life of the machine, each step whatever became of the one before.
func (s *system) run() {
	c := s.console
	// First of all, so that nobody reaps before and no request is lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR2)
	c.check("mount", mountBase())
	s.options = readOptions()
	c.say("edged %s, slot %s", release(), s.options["edged.slot"])
	c.check("load modules", loadModules("/lib/modules/edged.list"))
	followPowerButtons(signals, c)
	dog := openWatchdog(s.options["edged.watchdog"] != "off", c)
	c.check("set the clock", setClockAtLeast(buildTime(), c))
	c.check("set up control groups", setupCgroups())

	c.check("find the boot partition", s.findBoot())
	configErr := s.readConfig()
	c.check("read edged.yaml", configErr)
	dog.allow(startMax)
	if s.dataErr = s.mountData(); s.dataErr != nil {
		c.say("NO DATA PARTITION: %v", s.dataErr)
		c.say("the device stays up without its daemon; `data: recreate` in edged.yaml makes an empty one")
	} else {
		c.check("set the clock from the data partition", setClockAtLeast(lastKnownTime(stateDir, dataDir), c))
		dog.allow(startMax)
		c.check("copy what the boot partition brings", s.preload())
		c.check("take secrets off the boot partition", s.consumeSecrets())
		if s.held = holds(configErr, dataDir); s.held {
			c.say("the daemon is not started: this device is of no cluster yet, and which one is its own edged.yaml does not tell; mend that file and start the device again")
		}
	}
	name := s.hostname()
	c.check("set the host name", unix.Sethostname([]byte(name)))
	c.say("host name %s", name)

	s.net = startNetwork(s.config.Network, name, c)
	go keepTime(s.config.NTP, s.net, c)
	s.net.wait(15 * time.Second)
	d := newDaemon(s, dog)
	how := d.run(signals)
	s.shutdown(d, how)
}

// console is where a person with a serial cable or a monitor looks.
type console struct{ f *os.File }

func openConsole() *console {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		f = os.Stderr
	}
	return &console{f}
}

func (c *console) say(format string, args ...any) {
	fmt.Fprintf(c.f, "edged-init: "+format+"\r\n", args...)
}

// check tells what failed; the caller goes on.
func (c *console) check(what string, err error) {
	if err != nil {
		c.say("%s: %v", what, err)
	}
}

// readOptions reads name=value of the kernel's command line.
func readOptions() map[string]string {
	data, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil
	}
	return parseOptions(string(data))
}

func parseOptions(line string) map[string]string {
	out := map[string]string{}
	for _, f := range strings.Fields(line) {
		k, v, _ := strings.Cut(f, "=")
		out[k] = v
	}
	return out
}

func release() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "of unknown version"
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "VERSION="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "of unknown version"
}

// shutdown ends every process, leaves the disk in order and reboots or powers
// off.
func (s *system) shutdown(d *daemon, how syscall.Signal) {
	s.console.say("stopping")
	d.dog.allow(stopMax)
	d.stop(30 * time.Second)
	_ = unix.Kill(-1, unix.SIGTERM) // nobody left is no error
	if !d.reapAll(10 * time.Second) {
		_ = unix.Kill(-1, unix.SIGKILL)
		d.reapAll(5 * time.Second)
	}
	if s.dataErr == nil {
		s.console.check("save the clock", saveTime(stateDir))
	}
	unix.Sync()
	unmountAll(s.console)
	argument, err := os.ReadFile(rebootFile)
	if err != nil {
		argument = nil
	}
	if how == unix.SIGUSR2 {
		s.console.say("power off")
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	s.console.say("reboot %s", strings.TrimSpace(string(argument)))
	reboot(strings.TrimSpace(string(argument)))
}

// reboot does not return. argument is for the Pi's firmware: "0 tryboot".
func reboot(argument string) {
	unix.Sync()
	if argument != "" {
		restartWith(argument)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// buildTime is when the image was made: the time of every file of the root.
func buildTime() time.Time {
	fi, err := os.Stat("/etc/os-release")
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readTrim(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.Trim(string(data), " \t\r\n\x00")
}

func writeFile(path, text string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}
