package kinds_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/raftstore"
)

const suiteNamespace = "suite"

// samples are the objects of testdata, by kind.
func samples(t *testing.T) map[schema.GroupVersionKind][]byte {
	t.Helper()
	data, err := os.ReadFile("testdata/samples/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out := map[schema.GroupVersionKind][]byte{}
	r := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data)))
	defer r.Close()
	buf := make([]byte, len(data))
	for {
		n, err := r.Read(buf)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		doc := bytes.Clone(buf[:n])
		_, gvk, err := codec.Codecs().UniversalDeserializer().Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		out[*gvk] = doc
	}
}

// stores are the twins that the suite runs on: they must not differ.
func stores(t *testing.T) map[string]func(t *testing.T) registry.Store {
	return map[string]func(t *testing.T) registry.Store{
		"memory": func(*testing.T) registry.Store { return registrytest.NewMemStore() },
		"raft": func(t *testing.T) registry.Store {
			s, err := raftstore.Open(t.Context(), raftstore.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return registry.FromRaft(s)
		},
	}
}

// TestEveryKind takes every row of the table through the life of an object.
func TestEveryKind(t *testing.T) {
	all := samples(t)
	for name, open := range stores(t) {
		t.Run(name, func(t *testing.T) {
			r := registrytest.NewWith(t, registry.Config{Store: open(t)})
			for _, k := range r.Kinds() {
				if !k.Serves("create") {
					continue // in no store
				}
				t.Run(k.Resource+"."+k.GVK.Group, func(t *testing.T) {
					doc, ok := all[k.GVK]
					if !ok {
						t.Fatalf("no sample of %v in testdata", k.GVK)
					}
					(&suite{t: t, r: r, k: k, gr: k.GroupResource(), doc: doc}).run()
				})
			}
		})
	}
}

type suite struct {
	t    *testing.T
	r    *registry.Registry
	k    *registry.Kind
	gr   schema.GroupResource
	doc  []byte
	name string
}

func (s *suite) sample() runtime.Object {
	s.t.Helper()
	obj, _, err := codec.Codecs().UniversalDeserializer().Decode(s.doc, nil, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.meta(obj).SetLabels(map[string]string{"suite": "yes"})
	return obj
}

func (s *suite) meta(obj runtime.Object) metav1.Object {
	s.t.Helper()
	m, err := meta.Accessor(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *suite) ns() string {
	if s.k.Namespaced {
		return suiteNamespace
	}
	return ""
}

func (s *suite) run() {
	t, ctx := s.t, s.t.Context()
	s.name = s.meta(s.sample()).GetName()
	w := s.watch(registry.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{"suite": "yes"})})

	created := s.create()
	s.expect(w, watch.Added, created)
	s.conflictOnCreate()
	s.dryRun()
	s.read(created)
	updated := s.update(created)
	s.expect(w, watch.Modified, updated)
	s.noOpUpdate(updated)
	s.conflict(created)
	s.patches()
	s.status()
	s.leaveSelector()
	s.drain(w, watch.Deleted)
	s.delete()
	if _, err := s.r.Get(ctx, s.gr, s.ns(), s.name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get after deletion: %v", err)
	}
	s.createdAgainByGeneratedName()
}

func (s *suite) create() runtime.Object {
	s.t.Helper()
	obj, err := s.r.Create(s.t.Context(), s.gr, s.ns(), s.sample(), registry.CreateOptions{})
	if err != nil {
		s.t.Fatalf("create: %v", err)
	}
	m := s.meta(obj)
	if m.GetUID() == "" || m.GetResourceVersion() == "" || m.GetCreationTimestamp() == (metav1.Time{}) || m.GetNamespace() != s.ns() {
		s.t.Errorf("create left out system fields: %+v", m)
	}
	if gvk := obj.GetObjectKind().GroupVersionKind(); gvk != s.k.GVK {
		s.t.Errorf("create returned %v, want %v", gvk, s.k.GVK)
	}
	return obj
}

func (s *suite) conflictOnCreate() {
	s.t.Helper()
	_, err := s.r.Create(s.t.Context(), s.gr, s.ns(), s.sample(), registry.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		s.t.Errorf("create again: %v, want AlreadyExists", err)
	}
}

// hasGivenName: an object's name says what it is about, as an address does.
func (s *suite) hasGivenName() bool {
	return slices.Contains([]string{"ipaddresses", "customresourcedefinitions", "apiservices"}, s.k.Resource)
}

// dryRun creates another object, which must leave no trace.
func (s *suite) dryRun() {
	s.t.Helper()
	before := s.r.Revision()
	obj := s.sample()
	if s.hasGivenName() {
		return
	}
	s.meta(obj).SetName("dry")
	if _, err := s.r.Create(s.t.Context(), s.gr, s.ns(), obj, registry.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		s.t.Errorf("dry-run create: %v", err)
	}
	if now := s.r.Revision(); now != before {
		s.t.Errorf("a dry run moved the store from %d to %d", before, now)
	}
}

func (s *suite) read(created runtime.Object) {
	s.t.Helper()
	ctx := s.t.Context()
	got, err := s.r.Get(ctx, s.gr, s.ns(), s.name, metav1.GetOptions{})
	if err != nil || s.meta(got).GetUID() != s.meta(created).GetUID() {
		s.t.Errorf("get: %v, %v", got, err)
	}
	list := func(opts registry.ListOptions) []string {
		l, err := s.r.List(ctx, s.gr, s.ns(), opts)
		if err != nil {
			s.t.Errorf("list %+v: %v", opts, err)
			return nil
		}
		var names []string
		for _, o := range l.Items {
			names = append(names, s.meta(o).GetName())
		}
		return names
	}
	for what, opts := range map[string]registry.ListOptions{
		"all":       {},
		"by label":  {LabelSelector: labels.SelectorFromSet(labels.Set{"suite": "yes"})},
		"by name":   {FieldSelector: fields.OneTermEqualSelector("metadata.name", s.name)},
		"from 0":    {ResourceVersion: "0"},
		"exactly":   {ResourceVersion: s.meta(created).GetResourceVersion(), ResourceVersionMatch: metav1.ResourceVersionMatchExact},
		"as new as": {ResourceVersion: s.meta(created).GetResourceVersion(), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan},
	} {
		if names := list(opts); !slices.Contains(names, s.name) {
			s.t.Errorf("list %s: %v, want %s in it", what, names, s.name)
		}
	}
	if names := list(registry.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{"suite": "no"})}); len(names) != 0 {
		s.t.Errorf("list by a label that nobody has: %v", names)
	}
	for _, f := range s.k.SelectableFields {
		list(registry.ListOptions{FieldSelector: fields.OneTermEqualSelector(f, "x")})
	}
	_, err = s.r.List(ctx, s.gr, s.ns(), registry.ListOptions{FieldSelector: fields.OneTermEqualSelector("no.such", "x")})
	if !apierrors.IsBadRequest(err) {
		s.t.Errorf("list by an unknown field: %v, want BadRequest", err)
	}
}

func (s *suite) update(created runtime.Object) runtime.Object {
	s.t.Helper()
	out, isNew, err := s.r.Update(s.t.Context(), s.gr, s.ns(), s.name, "", func(cur runtime.Object) (runtime.Object, error) {
		s.meta(cur).SetAnnotations(map[string]string{"suite": "updated"})
		return cur, nil
	}, registry.UpdateOptions{})
	if err != nil || isNew {
		s.t.Fatalf("update: created %v, %v", isNew, err)
	}
	if rv := s.meta(out).GetResourceVersion(); rv == s.meta(created).GetResourceVersion() {
		s.t.Errorf("update kept resourceVersion %s", rv)
	}
	if got, err := s.r.Get(s.t.Context(), s.gr, s.ns(), s.name, metav1.GetOptions{ResourceVersion: "0"}); err != nil || s.meta(got).GetAnnotations()["suite"] != "updated" {
		s.t.Errorf("the device's own write is not in its cache: %v", err)
	}
	return out
}

// noOpUpdate sends the same object as a user's PUT would.
func (s *suite) noOpUpdate(stored runtime.Object) {
	s.t.Helper()
	before := s.r.Revision()
	_, _, err := s.r.Update(asUser(s.t.Context()), s.gr, s.ns(), s.name, "", func(runtime.Object) (runtime.Object, error) {
		return stored.DeepCopyObject(), nil
	}, registry.UpdateOptions{})
	if err != nil {
		s.t.Errorf("update without a change: %v", err)
	}
	if now := s.r.Revision(); now != before {
		s.t.Errorf("an update without a change moved the store from %d to %d", before, now)
	}
}

func (s *suite) conflict(old runtime.Object) {
	s.t.Helper()
	_, _, err := s.r.Update(s.t.Context(), s.gr, s.ns(), s.name, "", func(cur runtime.Object) (runtime.Object, error) {
		s.meta(cur).SetResourceVersion(s.meta(old).GetResourceVersion())
		s.meta(cur).SetAnnotations(map[string]string{"suite": "late"})
		return cur, nil
	}, registry.UpdateOptions{})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "the object has been modified") {
		s.t.Errorf("update from an old version: %v, want Conflict", err)
	}
	_, _, err = s.r.Update(s.t.Context(), s.gr, s.ns(), s.name, "", func(cur runtime.Object) (runtime.Object, error) {
		s.meta(cur).SetUID("other")
		return cur, nil
	}, registry.UpdateOptions{})
	if !apierrors.IsConflict(err) {
		s.t.Errorf("update of another uid: %v, want Conflict", err)
	}
}

func (s *suite) patches() {
	s.t.Helper()
	for _, p := range []struct {
		kind  types.PatchType
		patch string
		key   string
	}{
		{types.JSONPatchType, `[{"op":"add","path":"/metadata/annotations/json","value":"x"}]`, "json"},
		{types.MergePatchType, `{"metadata":{"annotations":{"merge":"x"}}}`, "merge"},
		{types.StrategicMergePatchType, `{"metadata":{"annotations":{"strategic":"x"}}}`, "strategic"},
		{types.ApplyYAMLPatchType, `{"apiVersion":"` + s.k.GVK.GroupVersion().String() + `","kind":"` + s.k.GVK.Kind + `","metadata":{"name":"` + s.name + `","annotations":{"apply":"x"}}}`, "apply"},
	} {
		obj, created, err := s.r.Patch(s.t.Context(), s.gr, s.ns(), s.name, "", p.kind, []byte(p.patch), registry.PatchOptions{FieldManager: "suite", FieldValidation: metav1.FieldValidationStrict})
		if err != nil || created {
			s.t.Errorf("%s: created %v, %v", p.kind, created, err)
			continue
		}
		if s.meta(obj).GetAnnotations()[p.key] != "x" {
			s.t.Errorf("%s: %v", p.kind, s.meta(obj).GetAnnotations())
		}
	}
	_, _, err := s.r.Patch(s.t.Context(), s.gr, s.ns(), s.name, "", types.MergePatchType, []byte(`{"nonsense":1}`), registry.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `unknown field "nonsense"`) {
		s.t.Errorf("strict patch with an unknown field: %v", err)
	}
	before := s.r.Revision()
	same := `{"apiVersion":"` + s.k.GVK.GroupVersion().String() + `","kind":"` + s.k.GVK.Kind + `","metadata":{"name":"` + s.name + `","annotations":{"apply":"x"}}}`
	if _, _, err := s.r.Patch(s.t.Context(), s.gr, s.ns(), s.name, "", types.ApplyYAMLPatchType, []byte(same), registry.PatchOptions{FieldManager: "suite"}); err != nil {
		s.t.Errorf("apply again: %v", err)
	}
	if now := s.r.Revision(); now != before {
		s.t.Errorf("applying the same again moved the store from %d to %d", before, now)
	}
}

func (s *suite) status() {
	s.t.Helper()
	if s.k.Subresources["status"] == nil {
		return
	}
	out, _, err := s.r.Update(s.t.Context(), s.gr, s.ns(), s.name, "status", func(cur runtime.Object) (runtime.Object, error) {
		s.meta(cur).SetAnnotations(map[string]string{"suite": "status"})
		return cur, nil
	}, registry.UpdateOptions{})
	if err != nil || out == nil {
		s.t.Errorf("update status: %v", err)
	}
	got, err := s.r.GetSubresource(s.t.Context(), s.gr, s.ns(), s.name, "status", metav1.GetOptions{})
	if err != nil || s.meta(got).GetName() != s.name {
		s.t.Errorf("get status: %v", err)
	}
	if _, _, err := s.r.Update(s.t.Context(), s.gr, s.ns(), "no-such", "status", func(cur runtime.Object) (runtime.Object, error) { return cur, nil }, registry.UpdateOptions{}); !apierrors.IsNotFound(err) {
		s.t.Errorf("update status of nothing: %v", err)
	}
}

// leaveSelector takes the object out of the watch's selector.
func (s *suite) leaveSelector() {
	s.t.Helper()
	_, _, err := s.r.Update(s.t.Context(), s.gr, s.ns(), s.name, "", func(cur runtime.Object) (runtime.Object, error) {
		m := s.meta(cur)
		l := map[string]string{}
		for k, v := range m.GetLabels() {
			l[k] = v
		}
		l["suite"] = "left"
		m.SetLabels(l)
		return cur, nil
	}, registry.UpdateOptions{})
	if err != nil {
		s.t.Errorf("changing labels: %v", err)
	}
}

func (s *suite) delete() {
	s.t.Helper()
	ctx := s.t.Context()
	uid := types.UID("other")
	_, _, err := s.r.Delete(ctx, s.gr, s.ns(), s.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if !apierrors.IsConflict(err) {
		s.t.Errorf("delete of another uid: %v, want Conflict", err)
	}
	_, _, err = s.r.Update(ctx, s.gr, s.ns(), s.name, "", func(cur runtime.Object) (runtime.Object, error) {
		s.meta(cur).SetFinalizers([]string{"example.com/hold"})
		return cur, nil
	}, registry.UpdateOptions{})
	if err != nil {
		s.t.Errorf("adding a finalizer: %v", err)
	}
	obj, gone, err := s.r.Delete(ctx, s.gr, s.ns(), s.name, metav1.DeleteOptions{})
	if err != nil || gone || s.meta(obj).GetDeletionTimestamp() == nil {
		s.t.Errorf("delete with a finalizer: gone %v, %v", gone, err)
	}
	finish := func(sub string, change func(runtime.Object)) {
		_, _, err := s.r.Update(ctx, s.gr, s.ns(), s.name, sub, func(cur runtime.Object) (runtime.Object, error) {
			change(cur)
			return cur, nil
		}, registry.UpdateOptions{})
		if err != nil {
			s.t.Errorf("finishing deletion: %v", err)
		}
	}
	finish("", func(cur runtime.Object) { s.meta(cur).SetFinalizers(nil) })
	if s.k.Resource == "namespaces" {
		finish("finalize", clearNamespace)
	}
}

func (s *suite) createdAgainByGeneratedName() {
	s.t.Helper()
	if s.hasGivenName() {
		return
	}
	obj := s.sample()
	m := s.meta(obj)
	m.SetName("")
	m.SetGenerateName("gen-")
	out, err := s.r.Create(s.t.Context(), s.gr, s.ns(), obj, registry.CreateOptions{})
	if err != nil {
		s.t.Errorf("create by generateName: %v", err)
		return
	}
	if name := s.meta(out).GetName(); !strings.HasPrefix(name, "gen-") || len(name) != len("gen-")+5 {
		s.t.Errorf("generated name %q", name)
	}
	if s.k.Serves("deletecollection") {
		if _, err := s.r.DeleteCollection(s.t.Context(), s.gr, s.ns(), metav1.DeleteOptions{}, registry.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{"suite": "yes"})}); err != nil {
			s.t.Errorf("deletecollection: %v", err)
		}
	}
}

func (s *suite) watch(opts registry.ListOptions) *registry.Watch {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	w, err := s.r.Watch(ctx, s.gr, s.ns(), opts)
	if err != nil {
		s.t.Fatalf("watch: %v", err)
	}
	return w
}

func (s *suite) expect(w *registry.Watch, typ watch.EventType, obj runtime.Object) {
	s.t.Helper()
	ev, ok := <-w.C()
	if !ok || ev.Type != typ {
		s.t.Fatalf("watch: %v %v, want %s", ok, ev, typ)
	}
	if got, want := s.meta(ev.Object).GetResourceVersion(), s.meta(obj).GetResourceVersion(); got != want {
		s.t.Errorf("watch: %s at %s, want %s", typ, got, want)
	}
}

// drain reads until an event of the type.
func (s *suite) drain(w *registry.Watch, typ watch.EventType) {
	s.t.Helper()
	for ev := range w.C() {
		if ev.Type == typ {
			return
		}
		if ev.Type != watch.Modified {
			s.t.Fatalf("watch: %v", ev)
		}
	}
	s.t.Fatalf("watch ended before %s", typ)
}
