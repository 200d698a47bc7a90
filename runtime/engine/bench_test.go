package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"edged/runtime/engine"
)

// BenchmarkStart measures Create and Start of one container after the other, and
// tells the latencies' distribution.
func BenchmarkStart(b *testing.B) {
	for _, profile := range []engine.Profile{{Unconfined: true}, {}} {
		name := "unconfined"
		if !profile.Unconfined {
			name = "seccomp"
		}
		b.Run(name, func(b *testing.B) {
			d, e := benchDevice(b)
			d.start(e, d.box("warm", "forever")) // the shim is there
			var took []time.Duration
			for n := 0; b.Loop(); n++ {
				spec := d.box(fmt.Sprint("c", n), "forever")
				spec.Seccomp = profile
				began := time.Now()
				if err := errors.Join(e.Create(ctx, spec), e.Start(ctx, spec.ID)); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				b.StopTimer()
				if err := e.Delete(ctx, spec.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkMemory tells what the engine's process and the shim hold with so many
// containers running.
func BenchmarkMemory(b *testing.B) {
	debug.SetGCPercent(40)
	for _, count := range []int{0, 1, 10, 50} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			d, e := benchDevice(b)
			for i := range count {
				d.start(e, d.box(fmt.Sprint("c", i), "forever"))
			}
			for b.Loop() {
			}
			debug.FreeOSMemory()
			b.ReportMetric(smaps(b, os.Getpid(), "Rss"), "engine-rss-MB")
			b.ReportMetric(smaps(b, os.Getpid(), "Anonymous"), "engine-anon-MB")
			if count > 0 {
				time.Sleep(12 * time.Second) // the shim gives memory back when it was quiet
				b.ReportMetric(smaps(b, d.shimPID(), "Rss"), "shim-rss-MB")
				b.ReportMetric(smaps(b, d.shimPID(), "Pss"), "shim-pss-MB")
				b.ReportMetric(smaps(b, d.shimPID(), "Anonymous"), "shim-anon-MB")
			}
		})
	}
}

func smaps(b *testing.B, pid int, key string) float64 {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if rest, ok := strings.CutPrefix(string(line), key+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	b.Fatalf("no %s", key)
	return 0
}

func benchDevice(b *testing.B) (*device, *engine.Engine) {
	d := newDevice(b)
	d.cfg.Logger = nil
	return d, d.openWithImages()
}
