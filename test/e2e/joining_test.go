package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"edged/test/harness"
)

// TestJoiningAtOnce: devices that join in one moment are all let in and become
// ready, those that a founder alone lets in and those that three founders do.
// EDGED_JOINS says how often, 1 if not set; EDGED_STACKS names a folder for the
// output and the goroutines of all when one is not.
func TestJoiningAtOnce(t *testing.T) {
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("EDGED_JOINS")); err == nil {
		rounds = n
	}
	for i := range rounds {
		founders, joining := 1+2*(i%2), 2+i%3
		t.Run(fmt.Sprintf("%d-%d-to-%d", i, joining, founders), func(t *testing.T) { joinAtOnce(t, founders, joining) })
	}
}

func joinAtOnce(t *testing.T, founders, joining int) {
	sw := harness.NewSwitch(t)
	var all []*harness.Device
	var flags []string
	if founders > 1 {
		flags = zeroTouch(secretFile(t, "correct horse battery staple"), founders)
	}
	for i := range founders {
		all = append(all, harness.New(t, sw, i+1, flags...))
		all[i].Start()
	}
	for _, d := range all {
		d.WaitReady()
	}
	token, err := all[0].Edged("token", "create", "--run-dir", all[0].RunDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := range joining {
		via := all[i%founders]
		all = append(all, harness.New(t, sw, founders+i+1, "--join", via.Addr.String()+":6443", "--token", strings.TrimSpace(token)))
	}
	began := time.Now()
	for _, d := range all[founders:] {
		d.Start()
	}
	for deadline := began.Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var late error
		for _, d := range all[founders:] {
			if err := d.Ready(); err != nil {
				late = fmt.Errorf("%s: %w", d.Name, err)
			}
		}
		if late == nil {
			break
		}
		if time.Now().After(deadline) {
			out := t.TempDir()
			if dir := os.Getenv("EDGED_STACKS"); dir != "" {
				out = dir
			}
			for _, d := range all {
				if err := os.WriteFile(filepath.Join(out, d.Name+".log"), []byte(d.Stacks()), 0o644); err != nil {
					t.Error(err)
				}
			}
			t.Fatalf("not all are ready a minute after they were started: %v", late)
		}
	}
	t.Logf("%d devices joined %d within %v", joining, founders, time.Since(began).Round(10*time.Millisecond))
	allReady(t, all[0], founders+joining)
}
