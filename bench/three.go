package main

import (
	"errors"
	"fmt"
	"slices"

	"edged/test/harness"
)

// three watches three devices of a cluster do nothing, with b.pods Pods each, and
// says what each holds when the cluster has 100. Their binary's pages are shared on
// this machine, which no device could count on: RSS is what one by itself would hold.
func (b *bench) three() error {
	devices, err := b.clusterOf(3, func(sw *harness.Switch, i int, flags ...string) *harness.Device {
		return harness.NewOnDisk(b.tb, sw, i, 2048, flags...)
	})
	if err != nil {
		return err
	}
	for _, d := range devices {
		d.ImportBusybox()
	}
	if err := b.deploy(devices[0], 3*b.pods); err != nil {
		return err
	}
	leader, err := leads(devices)
	if err != nil {
		return err
	}
	bytes, used := b.watch(devices)
	if now, err := leads(devices); err != nil {
		return err
	} else if now != leader {
		return errors.New("another device leads than when the watch began")
	}
	b.add(fmt.Sprintf("bytes written by each of 3 idle devices with %d Pods each in %v", b.pods, b.idle), "0", "%v", bytes)
	lead := used[leader]
	used = slices.Delete(used, leader, leader+1)
	b.add("CPU of an idle leader of 3 / of another", "0.4 CPU-s a minute", "%.2f / %.2f CPU-s a minute", lead, slices.Max(used))
	if err := b.deploy(devices[0], 100); err != nil {
		return err
	}
	settle()
	var most harness.Memory
	for _, d := range devices {
		m, err := own(d)
		if err != nil {
			return err
		}
		if m.RSS > most.RSS {
			most = m
		}
	}
	b.add("the largest of 3 devices with 100 Pods among them, RSS / of which anonymous", "96 MB", "%.1f / %.1f MB", float64(most.RSS)/mb, float64(most.Anon)/mb)
	return nil
}
