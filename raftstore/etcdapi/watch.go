package etcdapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"edged/raftstore"
	"edged/raftstore/etcdapi/rpc"
	"edged/raftstore/mvcc"
)

// Reasons for which a watch is not made, in etcd's words.
const (
	reasonDuplicate = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonEmpty     = "mvcc: watcher range is empty"
)

const (
	// noWatch is the id in answers that concern no watch, or all of them.
	noWatch = -1
	// sendOverhead is what etcd allows a message beyond the bound on requests.
	sendOverhead = 512 << 10
	// requestQueue bounds requests of a stream that wait for a slow client.
	requestQueue = 16
)

type watchService struct {
	pb.UnimplementedWatchServer
	*Server
}

// Watch serves one stream. All of its watches are read and sent by this
// goroutine, one batch at a time: what a slow client has not taken is in the
// store, not here.
func (s watchService) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	w := &watchStream{Server: s.Server, stream: stream}
	s.watching.streams.Add(1)
	defer s.watching.streams.Add(-1)
	requests := make(chan *pb.WatchRequest, requestQueue)
	failed := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) { // nothing more to ask, much to hear
					failed <- err
				}
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	err := w.run(stream.Context(), requests, failed)
	if errors.Is(err, context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

type watchStream struct {
	*Server
	stream  grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	watches []*watch
	nextID  int64
	ask     bool // the client wants to know how far all watches are
	tick    *time.Ticker
}

type watch struct {
	id                         int64
	from                       *mvcc.Watcher
	prevKV, progress, fragment bool
	noPut, noDelete            bool
	quiet                      bool // has sent nothing since the last tick
	slow                       bool // reads history that is older than the newest
}

// ahead says that a watch begins after the revision that comes next. To tell it
// how far the store is would tell the client to go on from there.
func (x *watch) ahead(rev int64) bool { return x.from.Position() > rev }

func (w *watchStream) run(ctx context.Context, requests <-chan *pb.WatchRequest, failed <-chan error) error {
	defer func() {
		if w.tick != nil {
			w.tick.Stop()
		}
		for _, x := range w.watches {
			w.forget(x)
		}
	}()
	idle := make(chan struct{})
	close(idle)
	for {
		// What everything sent in this round reaches at least.
		rev, _ := w.store.Revision()
		wake, err := w.round()
		if err != nil {
			return err
		}
		var tick <-chan time.Time
		if w.tick != nil {
			tick = w.tick.C
		}
		switch {
		case len(w.watches) == 0:
			w.ask = false
		case wake == nil:
			wake = idle // there is more to read: look for requests only
		case w.ask && !slices.ContainsFunc(w.watches, func(x *watch) bool { return x.ahead(rev) }):
			w.ask = false
			if err := w.send(&pb.WatchResponse{Header: w.headerAt(rev), WatchId: noWatch}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case req := <-requests:
			if err := w.request(req); err != nil {
				return err
			}
		case <-tick:
			if err := w.progress(rev, wake == idle); err != nil {
				return err
			}
		case <-wake:
		}
	}
}

// round reads each watch once and sends what there is, in as few writes as it fits
// in. wake is nil when a watch has more to read.
func (w *watchStream) round() (wake <-chan struct{}, err error) {
	defer rpc.Flush(w.stream.Context())
	more := false
	var last told
	for _, x := range slices.Clone(w.watches) {
		if last.serves(x) {
			if err := w.tell(x, &last); err != nil {
				return nil, err
			}
			continue
		}
		before := *x.from
		batch, changed, err := x.from.Poll()
		switch {
		case errors.Is(err, mvcc.ErrCompacted):
			if err := w.compacted(x); err != nil {
				return nil, err
			}
			continue
		case errors.Is(err, mvcc.ErrClosed):
			return nil, rpctypes.ErrGRPCStopped
		case err != nil:
			return nil, err
		}
		w.setSlow(x, changed == nil && batch.Revision < w.newest())
		if changed == nil {
			more = true
			_, compacted := w.store.Revision()
			last = told{by: x, before: before, header: w.headerAt(batch.Revision), events: x.wanted(batch.Events, compacted)}
			if err := w.tell(x, &last); err != nil {
				return nil, err
			}
		} else if wake == nil {
			wake = changed // of the first one: none has changed before it
		}
	}
	if more {
		return nil, nil
	}
	return wake, nil
}

func (w *watchStream) compacted(x *watch) error {
	w.remove(x.id)
	_, compacted := w.store.Revision()
	return w.send(&pb.WatchResponse{Header: w.headerAt(0), WatchId: x.id, Canceled: true, CompactRevision: compacted})
}

// tell sends x what there is.
func (w *watchStream) tell(x *watch, t *told) error {
	if len(t.events) == 0 {
		return nil
	}
	x.quiet = false
	if x.fragment {
		return w.fragments(&pb.WatchResponse{Header: t.header, WatchId: x.id, Events: t.events})
	}
	start := time.Now()
	err := w.stream.SendMsg(&sharedResponse{x.id, t})
	w.watching.sent(time.Since(start), len(t.events))
	return err
}

// fragments sends a response in pieces that a client with etcd's bound takes.
func (w *watchStream) fragments(resp *pb.WatchResponse) error {
	bound := w.store.MaxRequestBytes() + sendOverhead
	if proto.Size(resp) < bound {
		return w.send(resp)
	}
	for events := resp.Events; len(events) > 0; {
		n, size := 0, 0
		for n < len(events) {
			size += proto.Size(events[n]) + 8
			if n > 0 && size >= bound {
				break
			}
			n++
		}
		piece := &pb.WatchResponse{Header: resp.Header, WatchId: resp.WatchId, Events: events[:n], Fragment: n < len(events)}
		if err := w.send(piece); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// progress tells watches that wanted to know and have been quiet how far they
// are; not those that still have something to read, or begin later.
func (w *watchStream) progress(rev int64, busy bool) error {
	for _, x := range w.watches {
		if !x.progress {
			continue
		}
		if x.quiet && !busy && !x.ahead(rev) {
			if err := w.send(&pb.WatchResponse{Header: w.headerAt(rev), WatchId: x.id}); err != nil {
				return err
			}
		}
		x.quiet = true
	}
	return nil
}

func (w *watchStream) send(resp *pb.WatchResponse) error {
	start := time.Now()
	err := w.stream.Send(resp)
	switch took, n := time.Since(start), len(resp.Events); {
	case n > 0:
		w.watching.sent(took, n)
	case resp.Created || resp.Canceled:
		w.watching.sendControl.Observe(took)
	default:
		w.watching.sendProgress.Observe(took)
	}
	return err
}

func (w *watchStream) request(req *pb.WatchRequest) error {
	switch r := req.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		return w.create(r.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		if id := r.CancelRequest.GetWatchId(); w.remove(id) {
			return w.send(&pb.WatchResponse{Header: w.header(), WatchId: id, Canceled: true})
		}
	case *pb.WatchRequest_ProgressRequest:
		w.ask = true
	}
	return nil
}

func (w *watchStream) create(r *pb.WatchCreateRequest) error {
	id, reason := w.allot(r)
	if reason != "" {
		return w.send(&pb.WatchResponse{Header: w.header(), WatchId: noWatch, Created: true, Canceled: true, CancelReason: reason})
	}
	key := r.Key
	if len(key) == 0 {
		key = []byte{0} // the smallest
	}
	from, err := w.store.Watch(w.stream.Context(), raftstore.WatchOptions{Key: key, RangeEnd: r.RangeEnd, StartRevision: r.StartRevision, PrevKV: r.PrevKv})
	if err != nil {
		return err
	}
	w.watching.watches.Add(1)
	w.watches = append(w.watches, &watch{
		id: id, from: from, prevKV: r.PrevKv, progress: r.ProgressNotify, fragment: r.Fragment, quiet: true,
		noPut:    slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT),
		noDelete: slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE),
	})
	if r.ProgressNotify && w.tick == nil {
		// Not all streams at the same time, though they were made so.
		every := w.cfg.ProgressInterval
		w.tick = time.NewTicker(every + rand.N(every/10+1))
	}
	return w.send(&pb.WatchResponse{Header: w.header(), WatchId: id, Created: true})
}

// allot finds the new watch's id, or why there is to be none.
func (w *watchStream) allot(r *pb.WatchCreateRequest) (id int64, reason string) {
	if r.StartRevision < 0 {
		return 0, rpctypes.ErrCompacted.Error()
	}
	ctx, err := w.identify(w.stream.Context())
	if err == nil {
		key := r.Key
		if len(key) == 0 {
			key = []byte{0}
		}
		err = w.store.PermitRead(ctx, key, r.RangeEnd)
	}
	if err != nil {
		return 0, toStatus(err).Error()
	}
	open := len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0
	if len(r.RangeEnd) > 0 && !open && bytes.Compare(r.Key, r.RangeEnd) >= 0 {
		return 0, reasonEmpty
	}
	if r.WatchId != 0 {
		if w.find(r.WatchId) >= 0 {
			return 0, reasonDuplicate
		}
		return r.WatchId, ""
	}
	for w.find(w.nextID) >= 0 {
		w.nextID++
	}
	w.nextID++
	return w.nextID - 1, ""
}

func (w *watchStream) newest() int64 {
	rev, _ := w.store.Revision()
	return rev
}

// setSlow and forget keep count of the watches.
func (w *watchStream) setSlow(x *watch, slow bool) {
	if x.slow == slow {
		return
	}
	if x.slow = slow; slow {
		w.watching.slow.Add(1)
	} else {
		w.watching.slow.Add(-1)
	}
}

func (w *watchStream) forget(x *watch) {
	w.setSlow(x, false)
	w.watching.watches.Add(-1)
}

func (w *watchStream) find(id int64) int {
	return slices.IndexFunc(w.watches, func(x *watch) bool { return x.id == id })
}

func (w *watchStream) remove(id int64) bool {
	i := w.find(id)
	if i < 0 {
		return false
	}
	w.forget(w.watches[i])
	w.watches = slices.Delete(w.watches, i, i+1)
	return true
}
