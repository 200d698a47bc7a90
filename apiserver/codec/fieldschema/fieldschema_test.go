package fieldschema

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// TestInSync extracts again and compares: an upgrade of client-go must be
// followed by go generate.
func TestInSync(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "extract")
	if out, err := exec.Command("go", "build", "-o", bin, "./extract").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out := filepath.Join(dir, "types.yaml.gz")
	if msg, err := exec.Command(bin, out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	fresh, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if string(fresh) != string(packed) {
		t.Error("types.yaml.gz differs from client-go's schema: run go generate ./apiserver/codec/fieldschema")
	}
}

func TestParserReachesWhatItNeeds(t *testing.T) {
	p, err := Parser("io.k8s.api.apps.v1.Deployment")
	if err != nil {
		t.Fatal(err)
	}
	obj := `{"spec":{"template":{"spec":{"containers":[{"name":"a","ports":[{"containerPort":80,"protocol":"TCP"}]}]}}}}`
	v, err := p.Type("io.k8s.api.apps.v1.Deployment").FromYAML(`{"spec":{"template":{"spec":{"containers":[{"name":"a","image":"x"}]}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.Type("io.k8s.api.apps.v1.Deployment").FromYAML(typed.YAMLObject(obj))
	if err != nil {
		t.Fatal(err)
	}
	merged, err := v.Merge(w)
	if err != nil {
		t.Fatal(err)
	}
	containers := merged.AsValue().Unstructured().(map[string]any)["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)
	if len(containers) != 1 {
		t.Errorf("containers merge by name, got %v", containers)
	}
	if n := len(p.TypeNames()); n > 300 {
		t.Errorf("%d types for a Deployment: the closure is too wide", n)
	}
}
