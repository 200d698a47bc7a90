// Command store measures `edged store` beside an etcd built from its module, on
// the same disk in the same run, and prints a table.
//
//	go run . -edged ../../bin/edged [-seconds 3] [-rounds 3] [-kills 10] [-dir folder] [-only puts,reads] [-etcd binary]
//
// The servers take turns: what a machine does beside changes from minute to minute,
// so that only loads right after each other compare. Of the rounds of a load the table
// has the median, and of their ratios the median, the least and the most.
//
// Each server has a loop device of its own below -dir, so that bytes and syncs
// are counted at the block layer; it needs root. The load generator is etcd's
// own client. See bench/ for the daemon's other budgets.
package main

import (
	"context"
	"errors"
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

func main() {
	if len(os.Args) == 4 && os.Args[1] == slowDiskCommand {
		if err := runSlowDisk(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench/store:", err)
			os.Exit(1)
		}
		return
	}
	edged := flag.String("edged", "../../bin/edged", "the edged binary")
	dir := flag.String("dir", os.TempDir(), "folder on the disk to measure")
	seconds := flag.Float64("seconds", 3, "seconds for each load")
	rounds := flag.Int("rounds", 3, "turns that the servers take at each load")
	kills := flag.Int("kills", 10, "times to kill the leader of three members")
	only := flag.String("only", "", "measure these groups of rows alone: "+strings.Join(groupNames(), ", "))
	etcd := flag.String("etcd", "", "an etcd binary, instead of building one")
	servers := flag.String("servers", "etcd,edged", "which servers to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := bench{seconds: time.Duration(*seconds * float64(time.Second)), rounds: *rounds, kills: *kills, servers: strings.Split(*servers, ",")}
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
	rounds  int           // of each load
	kills   int
	only    []string // groups of rows; nil for all
	servers []string
}

func (b *bench) run(ctx context.Context, edged, etcd, dir string) (err error) {
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
	var all []*server
	defer func() {
		for _, s := range all {
			err = errors.Join(err, s.close())
		}
	}()
	for i, name := range b.servers {
		d, err := newDisk(filepath.Join(work, name+".img"), filepath.Join(work, name+".mnt"))
		if err != nil {
			return err
		}
		s := &server{name: name, binary: binaries[name], disk: d, port: 12379 + 1000*i}
		all = append(all, s)
		if err := s.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, g := range groups {
		if b.only == nil || slices.Contains(b.only, g.name) {
			if err := b.turns(ctx, g, all); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	b.table.print(os.Stdout)
	return nil
}

// turns measures a group of rows, the servers taking turns.
func (b *bench) turns(ctx context.Context, g group, servers []*server) error {
	rounds := 1
	if g.load {
		rounds = b.rounds
	}
	for range rounds {
		for _, s := range servers {
			if err := g.run(b, ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}
