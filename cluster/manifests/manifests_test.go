package manifests_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/cluster/manifests"
)

// complaints are what an Applier told of its files.
type complaints struct {
	mu   sync.Mutex
	told []string
}

func (c *complaints) add(file string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, file+": "+err.Error())
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.told)
}

func start(t *testing.T, reg *registry.Registry, dir string) *complaints {
	t.Helper()
	var c complaints
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	a := manifests.New(manifests.Config{Dir: dir, Registry: reg, Failed: c.add, Logger: slog.New(slog.DiscardHandler)})
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &c
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	beside := filepath.Join(dir, "."+name)
	if err := errors.Join(os.WriteFile(beside, []byte(text), 0o644), os.Rename(beside, filepath.Join(dir, name))); err != nil {
		t.Fatal(err)
	}
}

func configMap(name, ns, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata: {key: %q}\n", name, ns, value)
}

const namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"

func newRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	reg := registrytest.New(t)
	reg.SetAdmission(needsNamespace{reg})
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}); err != nil {
		t.Fatal(err)
	}
	return reg
}

func data(reg *registry.Registry, ns, name string) string {
	cm, ok := registry.For[*corev1.ConfigMap](reg).Get(ns, name)
	if !ok {
		return "-"
	}
	return cm.Data["key"]
}

// TestFolder is the life of a folder: it appears late and in parts, files come,
// change, are refused and go; each change is seen and nothing else is written.
func TestFolder(t *testing.T) {
	reg := newRegistry(t)
	dir := filepath.Join(t.TempDir(), "a", "b", "manifests")
	told := start(t, reg, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// In the order of their names the namespace comes last.
	write(t, dir, "a.yaml", configMap("one", "shop", "1")+"---\n# nothing\n---\n"+configMap("two", "\"\"", "2"))
	write(t, dir, "z.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}]}`)
	await(t, "everything is there", func() bool { return data(reg, "shop", "one") == "1" && data(reg, "default", "two") == "2" })

	write(t, dir, "a.yaml", configMap("one", "shop", "1b"))
	await(t, "a changed file is applied", func() bool { return data(reg, "shop", "one") == "1b" })

	// Ignored: by name, by being a folder, by being half of something.
	for _, name := range []string{"notes.txt", ".hidden.yaml", "a.yaml.bak"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(configMap("ignored", "default", "x")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "half.yml", configMap("ignored", "default", "x")+"---\napiVersion: v1\nkind: Conf")
	await(t, "a broken file is told of", func() bool { return len(told.all()) == 1 })
	write(t, dir, "half.yml", configMap("whole", "default", "x"))
	await(t, "the mended file is applied", func() bool { return data(reg, "default", "whole") == "x" })
	if data(reg, "default", "ignored") != "-" {
		t.Error("an object was made that no whole manifest has")
	}

	// A file that is being written in place is left alone until it is closed.
	f, err := os.Create(filepath.Join(dir, "slow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(configMap("slow", "default", "too early")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "other.yaml", configMap("other", "default", "y")) // makes it look at all
	await(t, "another file is applied", func() bool { return data(reg, "default", "other") == "y" })
	if got := data(reg, "default", "slow"); got != "-" {
		t.Errorf("a file that was being written was applied: %q", got)
	}
	if _, err := f.WriteAt([]byte(configMap("slow", "default", "at its end")), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	await(t, "the closed file is applied", func() bool { return data(reg, "default", "slow") == "at its end" })

	// Removing removes nothing; a folder that comes back is read again.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "new.yaml", configMap("new", "default", "n"))
	await(t, "the new folder is read", func() bool { return data(reg, "default", "new") == "n" })
	if data(reg, "shop", "one") != "1b" || data(reg, "default", "other") != "y" {
		t.Error("objects went with their files")
	}
	if all := told.all(); len(all) != 1 || !strings.HasPrefix(all[0], "half.yml: document 2: ") {
		t.Errorf("told %q", all)
	}
}

// TestManyDevices: several have the same files and start at the same time, one
// later; each object is written once, and a start of all over again writes
// nothing.
func TestManyDevices(t *testing.T) {
	reg := newRegistry(t)
	dir := t.TempDir()
	write(t, dir, "all.yaml", strings.Join([]string{
		fmt.Sprintf(namespace, "shop"),
		configMap("one", "shop", "1"),
		"apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: shop}\nstringData: {password: x}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, image: i, resources: {limits: {memory: 0.5Gi, cpu: 1000m}}}]}\n",
		"apiVersion: autoscaling/v1\nkind: HorizontalPodAutoscaler\nmetadata: {name: web, namespace: shop}\nspec: {maxReplicas: 3, targetCPUUtilizationPercentage: 50, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}\n",
	}, "---\n"))
	for range 3 {
		start(t, reg, dir)
	}
	hpas := registry.For[*autoscalingv2.HorizontalPodAutoscaler](reg)
	await(t, "the last object is there", func() bool { _, ok := hpas.Get("shop", "web"); return ok })
	hpa, _ := hpas.Get("shop", "web")
	if m := hpa.Spec.Metrics; len(m) != 1 || *m[0].Resource.Target.AverageUtilization != 50 {
		t.Errorf("what the old version says became %+v", hpa.Spec)
	}
	// A file more tells that an Applier has gone through all before it.
	through := func(n string) {
		t.Helper()
		other := t.TempDir()
		text, err := os.ReadFile(filepath.Join(dir, "all.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, other, "all.yaml", string(text))
		write(t, other, "z.yaml", configMap("through-"+n, "default", n))
		start(t, reg, other)
		await(t, "another device is through", func() bool { return data(reg, "default", "through-"+n) == n })
	}
	through("1")
	before := reg.Revision()
	through("2")
	if got := reg.Revision() - before; got != 1 {
		t.Errorf("%d writes by a device that starts with the same files, want its own one", got)
	}
}

// TestFileWins: what a person changed comes back at the next change of the file,
// what the file does not name stays, what it no longer names goes.
func TestFileWins(t *testing.T) {
	reg := newRegistry(t)
	dir := t.TempDir()
	write(t, dir, "a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: file, b: file}\n")
	told := start(t, reg, dir)
	cms := registry.For[*corev1.ConfigMap](reg)
	get := func() map[string]string {
		cm, ok := cms.Get("default", "c")
		if !ok {
			return nil
		}
		return cm.Data
	}
	await(t, "the object is there", func() bool { return get()["b"] == "file" })
	if _, err := cms.Update(t.Context(), "default", "c", func(cm *corev1.ConfigMap) error {
		cm.Data["a"], cm.Data["person"] = "person", "person"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, uid: of-another-cluster, resourceVersion: \"7\"}\ndata: {a: file}\n")
	await(t, "the file's state", func() bool {
		d := get()
		return d["a"] == "file" && d["b"] == "" && d["person"] == "person"
	})
	if all := told.all(); len(all) > 0 {
		t.Errorf("told %q", all)
	}
}

// TestRefused: what is refused is told once, tried again, and keeps nothing else
// back.
func TestRefused(t *testing.T) {
	reg := newRegistry(t)
	dir := t.TempDir()
	write(t, dir, "a.yaml", configMap("first", "late", "1")+"---\n"+configMap("second", "default", "2")+"---\n"+configMap("third", "late", "3"))
	write(t, dir, "b.yaml", "apiVersion: example.com/v1\nkind: Unknown\nmetadata: {name: u}\n")
	write(t, dir, "c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: typo}\ndate: {}\n")
	write(t, dir, "d.yaml", "just text\n")
	write(t, dir, "e.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: default}\n")
	told := start(t, reg, dir)
	await(t, "five complaints", func() bool { return len(told.all()) >= 5 })
	if data(reg, "default", "second") != "2" {
		t.Error("an object is kept back by one that is refused")
	}
	want := []string{
		`a.yaml: ConfigMap first: namespaces "late" not found (and 1 more of its objects)`,
		`b.yaml: Unknown u: the API serves no kind Unknown in version example.com/v1`,
		`c.yaml: ConfigMap typo: `,
		`d.yaml: document 1: want an object with apiVersion and kind`,
		`e.yaml: document 1: ConfigMap: metadata.name is missing`,
	}
	got := told.all()
	slices.Sort(got)
	for i, w := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], w) {
			t.Errorf("told %q, want one that begins %q", got, w)
		}
	}
	if _, err := registry.For[*corev1.Namespace](reg).Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "late"}}); err != nil {
		t.Fatal(err)
	}
	await(t, "what was refused is tried again", func() bool { return data(reg, "late", "third") == "3" })
	if all := told.all(); len(all) != len(want) {
		t.Errorf("told %q, more than once", all)
	}
}

// needsNamespace refuses what has no namespace to be in, as the API's admission.
type needsNamespace struct{ reg *registry.Registry }

func (n needsNamespace) Admit(_ context.Context, a *registry.Attributes) error {
	if _, ok := registry.For[*corev1.Namespace](n.reg).Get("", a.Namespace); !ok && a.Namespace != "" {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, a.Namespace)
	}
	return nil
}

func (needsNamespace) Validate(context.Context, *registry.Attributes) error { return nil }
