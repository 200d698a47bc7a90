package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/tests/v3/robustness/client"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// load is one of etcd's traffics at one of its intensities.
type load struct {
	name    string
	traffic traffic.Traffic
	profile traffic.KeyValue
}

var traffics = []load{
	{"etcd", traffic.EtcdPutDeleteLease, traffic.KeyValueMedium},
	{"etcd-high", traffic.EtcdPut, traffic.KeyValueHigh},
	{"kubernetes", traffic.Kubernetes, traffic.KeyValueHigh},
}

const (
	before = time.Second
	after  = time.Second
	// leastOperations is what must have been asked and answered for a run to
	// say anything.
	leastOperations = 100
)

// figures are what a run was made of.
type figures struct {
	operations, failed, events int
	revision                   int64
}

// oneRun plays a fault under a traffic on a new cluster and judges it.
func oneRun(ctx context.Context, o options, f fault, t load, round int, draw *rand.Rand) (r figures, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	dir := filepath.Join(o.work, fmt.Sprintf("%s-%s-%d", f.name, t.name, round))
	if err := os.RemoveAll(dir); err != nil {
		return r, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	conf := zap.NewDevelopmentConfig()
	conf.DisableStacktrace = true
	conf.OutputPaths = []string{filepath.Join(dir, "judge.log")}
	lg, err := conf.Build()
	if err != nil {
		return r, err
	}
	c, err := newCluster(ctx, o.bin, dir, f.disks, f.flags...)
	h := &history{lg: lg}
	if err == nil {
		err = h.record(ctx, c, f, t, draw)
	}
	if err == nil {
		err = sameHash(ctx, c)
	}
	err = errors.Join(err, c.close())
	if h.reports == nil {
		return r, fmt.Errorf("%w; see %s", err, dir)
	}
	r = h.figures()
	if r.operations < leastOperations && err == nil {
		err = fmt.Errorf("only %d operations: nothing is proved", r.operations)
	}
	if err = errors.Join(err, h.judge(t.traffic.ExpectUniqueRevision(), dir)); err != nil {
		return r, fmt.Errorf("%w; see %s", err, dir)
	}
	return r, os.RemoveAll(dir)
}

// history is what clients and witnesses saw.
type history struct {
	lg        *zap.Logger
	reports   []report.ClientReport // of clients and witnesses
	witnesses []report.ClientReport
}

// record runs the traffic while the fault comes and goes.
func (h *history) record(ctx context.Context, c *cluster, f fault, t load, draw *rand.Rand) error {
	base := time.Now()
	ids := identity.NewIDProvider()
	clients, watchers := client.NewSet(ids, base), client.NewSet(ids, base)
	defer clients.Close()
	defer watchers.Close()
	if err := traffic.CheckEmptyDatabaseAtStart(ctx, h.lg, c.endpoints(), clients); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	newest := make(chan int64, 1)
	var witness errgroup.Group
	witness.Go(func() error {
		return client.CollectClusterWatchEvents(ctx, client.CollectClusterWatchEventsParam{
			Lg: h.lg, Endpoints: c.endpoints(), MaxRevisionChan: newest, ClientSet: watchers,
		})
	})
	err := h.drive(ctx, c, f, t, draw, clients)
	operations := clients.Reports()
	if err == nil {
		newest <- report.OperationsMaxRevision(operations)
	}
	close(newest)
	// A witness that cannot come to the end is what the run is about to say.
	over := time.AfterFunc(patience, cancel)
	defer over.Stop()
	err = errors.Join(err, witness.Wait())
	h.witnesses = watchers.Reports()
	h.reports = append(append(h.reports, operations...), h.witnesses...)
	return err
}

// drive starts clients, watches and compaction, injects the fault, and writes a
// last key when all have ended: the checkers need an end that is certain.
func (h *history) drive(ctx context.Context, c *cluster, f fault, t load, draw *rand.Rand, clients *client.ClientSet) error {
	var wg sync.WaitGroup
	finish := make(chan struct{})
	endpoints := c.endpoints()
	limiter := rate.NewLimiter(rate.Limit(t.profile.MaximalQPS), t.profile.BurstableQPS)
	keys, storage := traffic.NewKeyStore(10, "key"), traffic.NewKubernetesStorage()
	err := traffic.SimulateKeyValueTraffic(ctx, &wg, &t.profile, endpoints, clients, t.traffic, traffic.RunTrafficLoopParam{
		QPSLimiter: limiter, IDs: clients.IdentityProvider(), LeaseIDStorage: identity.NewLeaseIDStorage(),
		NonUniqueRequestConcurrencyLimiter: traffic.NewConcurrencyLimiter(t.profile.MaxNonUniqueRequestConcurrency),
		KeyStore:                           keys, Storage: storage, Finish: finish,
	})
	watches := traffic.WatchDefault
	err = errors.Join(err, traffic.SimulateWatchTraffic(ctx, &wg, &watches, endpoints, clients, t.traffic, traffic.RunWatchLoopParam{
		Config: watches, QPSLimiter: limiter, KeyStore: keys, Storage: storage, Finish: finish, Logger: h.lg,
	}))
	compacting := make(chan struct{})
	var compaction sync.WaitGroup
	compact := func() error {
		return traffic.SimulateCompactionTraffic(ctx, &compaction, &traffic.CompactionDefault, endpoints, clients, t.traffic, traffic.RunCompactLoopParam{
			Period: traffic.CompactionDefault.Period, Finish: compacting,
		})
	}
	err = errors.Join(err, compact())
	wait(ctx, before)
	if f.dark {
		close(compacting)
		compaction.Wait()
	}
	if err == nil {
		if ferr := f.inject(ctx, c, draw, clients); ferr != nil {
			err = fmt.Errorf("fault %s: %w", f.name, ferr)
		}
	}
	wait(ctx, after)
	if !f.dark {
		close(compacting)
	}
	close(finish)
	wg.Wait()
	compaction.Wait()
	if err != nil {
		return err
	}
	last, err := clients.NewClient(endpoints)
	if err != nil {
		return err
	}
	defer last.Close()
	_, err = last.Put(ctx, "tombstone", "true")
	if err != nil {
		return fmt.Errorf("the last write: %w", err)
	}
	return nil
}

func (h *history) figures() (r figures) {
	r.operations, r.failed, r.revision = countOperations(h.reports)
	for _, rep := range h.reports {
		r.events += rep.WatchEventCount()
	}
	return r
}
