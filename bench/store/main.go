// Command store measures `edged store` beside an etcd built from its module, on
// the same disk in the same run, and prints a table.
//
//	go run . -edged ../../bin/edged [-seconds 5] [-kills 30] [-dir folder] [-only puts,reads] [-etcd binary]
//
// Each server has a loop device of its own below -dir, so that bytes and syncs
// are counted at the block layer; it needs root. The load generator is etcd's
// own client. See bench/ for the daemon's other budgets.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// row is a line of the table.
type row struct {
	what string
	got  map[string]float64
	unit string
	// more is better when set; then the budget is a minimum of edged over etcd.
	more   bool
	budget float64
}

func main() {
	edged := flag.String("edged", "../../bin/edged", "the edged binary")
	dir := flag.String("dir", os.TempDir(), "folder on the disk to measure")
	seconds := flag.Int("seconds", 5, "seconds for each load")
	kills := flag.Int("kills", 10, "times to kill the leader of three members")
	only := flag.String("only", "", "measure these groups of rows alone: "+strings.Join(groupNames(), ", "))
	etcd := flag.String("etcd", "", "an etcd binary, instead of building one")
	servers := flag.String("servers", "etcd,edged", "which servers to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := bench{seconds: time.Duration(*seconds) * time.Second, kills: *kills, servers: strings.Split(*servers, ",")}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	if err := b.run(ctx, *edged, *etcd, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench/store:", err)
		os.Exit(1)
	}
}

// bench is what one run measures.
type bench struct {
	table   table
	seconds time.Duration // of each load
	kills   int
	only    []string // groups of rows; nil for all
	servers []string
}

func (b *bench) run(ctx context.Context, edged, etcd, dir string) error {
	for _, g := range b.only {
		if !slices.Contains(groupNames(), g) {
			return fmt.Errorf("-only %s: want %s", g, strings.Join(groupNames(), ", "))
		}
	}
	work, err := os.MkdirTemp(dir, "edged-bench-store")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if etcd == "" {
		etcd = filepath.Join(work, "etcd")
		build := exec.CommandContext(ctx, "go", "build", "-o", etcd, "go.etcd.io/etcd/server/v3")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build etcd: %w", err)
		}
	}
	if edged, err = filepath.Abs(edged); err != nil {
		return err
	}
	binaries := map[string][]string{"etcd": {etcd}, "edged": {edged, "store"}}
	for _, name := range b.servers {
		disk, err := newDisk(filepath.Join(work, name+".img"), filepath.Join(work, name+".mnt"))
		if err != nil {
			return err
		}
		err = b.measure(ctx, &server{name: name, binary: binaries[name], disk: disk})
		if cerr := disk.close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	b.table.print(os.Stdout)
	return nil
}

type table struct{ rows []*row }

func (t *table) add(name, what, unit string, more bool, budget, value float64) {
	for _, r := range t.rows {
		if r.what == what {
			r.got[name] = value
			return
		}
	}
	t.rows = append(t.rows, &row{what, map[string]float64{name: value}, unit, more, budget})
}

func (t *table) print(w *os.File) {
	fmt.Fprintf(w, "| %-52s | %10s | %10s | %-6s | %8s | budget |\n|---|---|---|---|---|---|\n", "what", "etcd", "edged", "unit", "ratio")
	for _, r := range t.rows {
		a, b := r.got["etcd"], r.got["edged"]
		ratio, verdict := 0.0, ""
		if a > 0 {
			ratio = b / a
		}
		if r.budget > 0 {
			ok := ratio <= r.budget
			if r.more {
				ok = ratio >= r.budget
			}
			verdict = fmt.Sprintf("%.2f %s", r.budget, map[bool]string{true: "ok", false: "MISSED"}[ok])
		}
		fmt.Fprintf(w, "| %-52s | %10.1f | %10.1f | %-6s | %8.2f | %s |\n", r.what, a, b, r.unit, ratio, verdict)
	}
}
