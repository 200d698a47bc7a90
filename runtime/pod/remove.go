package pod

import (
	"context"
	"errors"
	"os"

	"edged/runtime/engine"
)

// tidy gives back network, namespaces and volumes of a Pod that is over. Its
// records and logs stay until it is deleted.
func (w *Worker) tidy(ctx context.Context) bool {
	if w.pidNS() != "" {
		w.drop(ctx, w.holderID())
	}
	err := w.dev.Network.Detach(ctx, w.uid)
	if err == nil {
		err = w.dev.Sandboxes.Remove(w.uid)
	}
	if err == nil {
		err = w.dev.Volumes.Release(ctx, w.uid)
	}
	if err != nil {
		w.dev.Logger.Error("what a Pod had is not given back yet", "pod", w.name(), "err", err)
		return false
	}
	w.boxReady, w.volumes = false, nil
	return true
}

// shed removes the containers of an evicted Pod, whose files may be what the
// device was short of, once the cluster knows how they ended.
func (w *Worker) shed(ctx context.Context, all []*observed) {
	for _, o := range all {
		if o.cur == nil || o.running() || o.known == nil {
			continue
		}
		if end := o.known.State.Terminated; end != nil && end.ContainerID == "containerd://"+o.cur.ID {
			w.drop(ctx, o.cur.ID)
			if o.prev != nil {
				w.drop(ctx, o.prev.ID)
			}
		}
	}
}

// forget removes the last traces of a Pod.
func (w *Worker) forget(ctx context.Context) error {
	for _, list := range runs(w.uid, w.dev.Engine.List()) {
		for _, c := range list {
			if err := w.dev.Engine.Delete(ctx, c.ID); err != nil && !errors.Is(err, engine.ErrNotFound) {
				return err
			}
		}
	}
	w.dev.Images.Forget(w.uid)
	return errors.Join(w.dev.Volumes.Teardown(ctx, w.uid), os.RemoveAll(w.logDir()))
}
