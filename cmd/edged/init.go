package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"edged/buildroot/pid1"
)

// runInit is the first process of edged's image. The image itself starts the
// same from a program of its own, which is smaller.
func runInit(_ context.Context, e env) error {
	if len(e.args) > 0 {
		return misusef("takes no arguments, got %q", e.args[0])
	}
	pid1.Main()
	return nil
}

// sayAlive tells the service manager, if it wants to know, that the device's own
// loops live: what is asked of the registry waits for its lock. It asks
// nothing of the disk: a card that stalls is not a dead device.
func (d *device) sayAlive(ctx context.Context) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("WATCHDOG_USEC: %w", err)
	}
	if every == 0 {
		return nil
	}
	t := time.NewTicker(every / 2)
	defer t.Stop()
	for {
		_ = d.registry.Revision()
		if _, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); err != nil {
			return fmt.Errorf("tell the service manager that the device lives: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
