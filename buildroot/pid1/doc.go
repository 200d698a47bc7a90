// Package pid1 is the first process of edged's image: a machine without shell,
// login or package manager that runs one daemon.
//
// [Main] is the whole of it. Started from the initial RAM disk it loads the
// modules that the root needs, mounts the root, and starts itself there. From
// the root it mounts, sets clock and name, opens the watchdog, checks, grows and
// mounts the data partition, brings up links, starts `edged run` and starts it
// again when it ends, until a signal asks for a reboot (SIGTERM, SIGINT) or for
// power-off (SIGUSR2), or somebody presses the power button.
//
// Promise: a step that fails is told on the console and the next one is tried,
// so that a device is on the network whatever state its card is in. Without a
// data partition the daemon is not started: an empty one would make a device that
// thinks it is new. A partition that was in use is made anew only if edged.yaml
// says so. The daemon is killed when it says that it lives and then stops saying
// so. The watchdog resets the machine when this process shows no sign of life: for
// a minute while the daemon runs, for ten in a step of the start, which may check a
// large card.
//
// Dangers: everything here runs as PID 1: a panic is the kernel's. Decoders of
// what comes from outside (DHCP, NTP, edged.yaml, the notify socket) return
// errors.
//
// Goroutines: one for links, one per link with DHCP, one for the clock, one each
// for the watchdog and the notify socket, one per button or keyboard; all end with
// the process.
//
// May be imported by buildroot/init and cmd/edged. It links neither Kubernetes
// nor net/http: the image's /sbin/init is a program of a few megabytes.
//
// Sources: bootparam(7), reboot(2), RFC 2131, RFC 2132, RFC 4330, sd_notify(3),
// Documentation/watchdog/watchdog-api.rst.
package pid1
