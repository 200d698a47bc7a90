package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/cluster/rotation"
	"edged/raftstore"
)

const caUsage = `Usage: edged ca rotate             give the cluster a new CA; the old one stays trusted
       edged ca status             tell which devices have taken up the new CA
       edged ca finish [--force]   give up the old CA

Until 'finish', kubeconfigs and tokens that were made with the old CA go on
working. Print new ones with 'edged kubeconfig' and 'edged token create' first.

Flags:
`

// rotationKey is where the store keeps how far the CA's rotation is. It is not an
// object: the API has nothing to say about it.
const rotationKey = "/edged/ca-rotation"

func (d *device) rotation() *rotation.Rotation {
	return &rotation.Rotation{
		Name: d.cfg.nodeName, Identity: d.identity, Store: rotationStore{d.store}, Logger: d.log,
		Members: func(ctx context.Context) ([]string, error) {
			list, err := d.store.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			if err != nil {
				return nil, err
			}
			var names []string
			for _, m := range list.Members {
				names = append(names, m.Name)
			}
			return names, nil
		},
	}
}

// followCA has everything that keeps certificates of the CA follow it, until ctx
// ends.
func (d *device) followCA(ctx context.Context) error {
	for {
		changed := d.identity.CAChanged()
		d.access.authn.TrustClientCAs(d.identity.CAPool())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// rotationStore is a key of the store as rotation sees it.
type rotationStore struct{ s *raftstore.Store }

func (r rotationStore) Load(ctx context.Context) ([]byte, int64, error) {
	resp, err := r.s.Range(ctx, &pb.RangeRequest{Key: []byte(rotationKey), Serializable: true})
	if err != nil {
		return nil, 0, err
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	return resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}

func (r rotationStore) Save(ctx context.Context, data []byte, rev int64) error {
	resp, err := r.s.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: []byte(rotationKey), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
		}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(rotationKey), Value: data}}}},
	})
	if err == nil && !resp.Succeeded {
		return rotation.ErrConflict
	}
	return err
}

func (r rotationStore) Wait(ctx context.Context, rev int64) error {
	// The watch first: what comes between it and the read is seen twice.
	now, _ := r.s.Revision()
	w, err := r.s.Watch(ctx, raftstore.WatchOptions{Key: []byte(rotationKey), StartRevision: now + 1})
	if err != nil {
		return err
	}
	if _, is, err := r.Load(ctx); err != nil || is != rev {
		return err
	}
	if _, err = w.Next(ctx); errors.Is(err, raftstore.ErrCompacted) {
		return nil
	}
	return err
}

func (d *device) controlCA(mux *http.ServeMux) {
	mux.Handle("GET /v1/ca", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return d.rotation().Status(r.Context())
	}))
	mux.Handle("POST /v1/ca", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, d.rotation().Start(r.Context())
	}))
	mux.Handle("POST /v1/ca/finish", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, d.rotation().Finish(r.Context(), r.URL.Query().Get("force") == "true")
	}))
}

func runCA(ctx context.Context, e env) error {
	var c config
	var force bool
	flags := pflag.NewFlagSet("ca", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	flags.BoolVar(&force, "force", false, "shut out the devices that have not taken up the new CA (finish)")
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, caUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged ca --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch verb := strings.Join(flags.Args(), " "); {
	case force && verb != "finish":
		return misusef("--force goes with finish")
	case verb == "rotate":
		return callControl(ctx, c.runDir, http.MethodPost, "/v1/ca", nil, nil)
	case verb == "finish":
		return callControl(ctx, c.runDir, http.MethodPost, fmt.Sprintf("/v1/ca/finish?force=%v", force), nil, nil)
	case verb == "status":
		var s rotation.Status
		if err := callControl(ctx, c.runDir, http.MethodGet, "/v1/ca", nil, &s); err != nil {
			return err
		}
		if !s.Running {
			_, err := fmt.Fprintln(e.stdout, "The cluster has one CA.")
			return err
		}
		_, err := fmt.Fprintf(e.stdout, "The CA is being replaced.\nwith the new one: %s\nnot yet: %s\n", names(s.Adopted), names(s.Missing))
		return err
	}
	return misusef("want rotate, status or finish; `edged ca --help` tells its use")
}

func names(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
