package manifests

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"

	"edged/apiserver/registry"
)

// FieldManager owns the fields that files set.
const FieldManager = "edged-manifests"

const (
	firstBackOff = 250 * time.Millisecond
	maxBackOff   = 5 * time.Minute
	// quietTries are failures that nobody is told of: a cluster that has just
	// begun refuses much in its first second or two.
	quietTries = 4
)

// Config is what an Applier needs.
type Config struct {
	Dir      string
	Registry *registry.Registry
	// Failed is told once per file, its content and reason why it is not applied;
	// may be nil.
	Failed func(file string, err error)
	Logger *slog.Logger
}

// Applier applies the files of one folder.
type Applier struct {
	cfg   Config
	files map[string]*file // owned by Run
}

// file is what is known of a file that was seen.
type file struct {
	sum   [sha256.Size]byte
	done  bool // applied, or cannot be read as objects
	tries int
	told  string
}

// New returns an Applier; Run starts it.
func New(cfg Config) *Applier { return &Applier{cfg: cfg, files: map[string]*file{}} }

// Run applies what is there and what comes until ctx ends.
func (a *Applier) Run(ctx context.Context) error {
	w, err := watch(ctx, a.cfg.Dir)
	if err != nil {
		a.cfg.Logger.Warn("the folder of manifests is not watched: what changes is applied at the next start", "folder", a.cfg.Dir, "err", err)
		w = &watcher{}
	}
	defer w.close()
	for wait := firstBackOff; ; {
		failing, progress := a.pass(ctx, w)
		var again <-chan time.Time // never
		switch {
		case ctx.Err() != nil:
			return nil
		case failing && progress:
			wait = firstBackOff
			continue
		case failing:
			again = time.After(wait)
			wait = min(2*wait, maxBackOff)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
			wait = firstBackOff
		case <-again:
		}
	}
}

// pass looks at all files once. progress says that something was written.
func (a *Applier) pass(ctx context.Context, w *watcher) (failing, progress bool) {
	if err := w.arm(); err != nil && ctx.Err() == nil {
		a.cfg.Logger.Warn("the folder of manifests is not watched", "folder", a.cfg.Dir, "err", err)
	}
	names, err := list(a.cfg.Dir)
	if err != nil {
		a.cfg.Logger.Warn("the folder of manifests cannot be read", "folder", a.cfg.Dir, "err", err)
		return false, false
	}
	seen := make(map[string]*file, len(names))
	for _, name := range names {
		if ctx.Err() != nil {
			return false, false
		}
		f := a.files[name]
		if f == nil {
			f = &file{}
		}
		seen[name] = f
		wrote := a.look(ctx, name, f)
		progress = progress || wrote
		failing = failing || f.tries > 0
	}
	a.files = seen
	return failing, progress
}

// look applies a file that is new, has changed or failed before.
func (a *Applier) look(ctx context.Context, name string, f *file) (wrote bool) {
	data, err := read(a.cfg.Dir, name)
	switch {
	case errors.Is(err, errBusy):
		// The kernel tells of the close a moment before it is one.
		a.failed(ctx, name, f, err)
		return false
	case errors.Is(err, fs.ErrNotExist): // since the folder was read, or a link to nowhere
		return false
	case err != nil:
		*f = file{told: f.told}
		a.tell(name, f, err)
		return false
	}
	if sum := sha256.Sum256(data); sum != f.sum {
		*f = file{sum: sum}
	}
	if f.done {
		return false
	}
	objects, err := parse(data)
	if err != nil {
		f.done = true
		a.tell(name, f, err)
		return false
	}
	written, err := a.applyAll(ctx, objects)
	if written > 0 {
		a.cfg.Logger.Info("a manifest is applied", "file", name, "objects", len(objects), "written", written)
	}
	if err == nil {
		f.done, f.tries = true, 0
		return written > 0
	}
	a.failed(ctx, name, f, err)
	return written > 0
}

// failed has the file tried again.
func (a *Applier) failed(ctx context.Context, name string, f *file, err error) {
	if f.tries++; f.tries >= quietTries && ctx.Err() == nil {
		a.tell(name, f, err)
	}
}

func (a *Applier) tell(name string, f *file, err error) {
	if err.Error() == f.told {
		return
	}
	f.told = err.Error()
	a.cfg.Logger.Warn("a manifest is not applied", "file", name, "retried", f.tries > 0, "err", err)
	if a.cfg.Failed != nil {
		a.cfg.Failed(name, err)
	}
}

// applyAll applies what it can, in order. The error is the first one, which
// others often follow from.
func (a *Applier) applyAll(ctx context.Context, objects []*unstructured.Unstructured) (written int, err error) {
	failed := 0
	for _, o := range objects {
		wrote, e := a.apply(ctx, o)
		if wrote {
			written++
		}
		if e == nil {
			continue
		}
		if failed++; failed == 1 {
			err = fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), e)
		}
		if errors.Is(e, registry.ErrNoQuorum) || ctx.Err() != nil {
			return written, err
		}
	}
	if failed > 1 {
		err = fmt.Errorf("%w (and %d more of its objects)", err, failed-1)
	}
	return written, err
}

// apply applies one object; it is false if the cluster has it as it is.
func (a *Applier) apply(ctx context.Context, o *unstructured.Unstructured) (wrote bool, err error) {
	gvk := o.GroupVersionKind()
	kind, gr := a.kind(gvk)
	if kind == nil {
		return false, fmt.Errorf("the API serves no kind %s in version %s", gvk.Kind, o.GetAPIVersion())
	}
	ns := ""
	if kind.Namespaced {
		if ns = o.GetNamespace(); ns == "" {
			ns = metav1.NamespaceDefault
		}
	} else {
		o.SetNamespace("")
	}
	// JSON, which is YAML too.
	patch, err := o.MarshalJSON()
	if err != nil {
		return false, err
	}
	before := ""
	if old, ok := a.cfg.Registry.Cached(kind, ns, o.GetName()); ok {
		before = version(old)
	}
	ctx = request.WithRequestInfo(request.WithNamespace(ctx, ns), &request.RequestInfo{
		IsResourceRequest: true, Verb: "patch", APIGroup: gvk.Group, APIVersion: gvk.Version, Namespace: ns, Resource: gr.Resource, Name: o.GetName(),
	})
	obj, created, err := a.cfg.Registry.Patch(ctx, gr, ns, o.GetName(), "", types.ApplyYAMLPatchType, patch, registry.PatchOptions{
		FieldManager: FieldManager, Force: true, FieldValidation: metav1.FieldValidationStrict,
	})
	if err != nil {
		return false, err
	}
	return created || version(obj) != before, nil
}

func version(obj any) string {
	m, err := meta.Accessor(obj)
	if err != nil {
		return ""
	}
	return m.GetResourceVersion()
}

// kind finds the row of a kind and the resource under which the version serves
// it.
func (a *Applier) kind(gvk schema.GroupVersionKind) (*registry.Kind, schema.GroupResource) {
	for _, k := range a.cfg.Registry.Kinds() {
		if k.GVK.Kind != gvk.Kind {
			continue
		}
		for _, gv := range k.ServedVersions() {
			if gv == gvk.GroupVersion() {
				return k, schema.GroupResource{Group: gvk.Group, Resource: k.Resource}
			}
		}
	}
	return nil, schema.GroupResource{}
}
