package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const gadgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget, shortNames: [gg]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Color, type: string, jsonPath: .spec.color}]
    schema:
      openAPIV3Schema:
        description: Gadget is for testing
        type: object
        properties:
          spec:
            description: what the gadget is like
            type: object
            properties: {color: {type: string, enum: [red, blue]}, size: {type: integer, default: 3}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

// TestCustomResources takes a definition through kubectl on one device of two,
// and looks at it from the other, after a restart too.
func TestCustomResources(t *testing.T) {
	devices := newCluster(t, 2)
	one, two := devices[0], devices[1]
	expect := func(want string, out string, err error) {
		t.Helper()
		if !strings.Contains(out, want) {
			t.Errorf("%q, %v; want %q in it", out, err, want)
		}
	}
	run := func(want, stdin string, args ...string) {
		t.Helper()
		out, err := one.Kubectl(stdin, args...)
		expect(want, out, err)
	}
	run("created", gadgets, "apply", "-f", "-")
	run("condition met", "", "wait", "--for=condition=established", "crd/gadgets.example.com", "--timeout=20s")
	run("gadget.example.com/g created", "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: g, namespace: default}\nspec: {color: red}", "apply", "-f", "-")
	run(`strict decoding error: unknown field "spec.weight"`, "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: h, namespace: default}\nspec: {weight: 1}", "create", "-f", "-")
	run(`supported values: "red", "blue"`, "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: h, namespace: default}\nspec: {color: green}", "create", "-f", "-")
	run("serverside-applied", "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: g, namespace: default}\nspec: {color: red, size: 4}", "apply", "--server-side", "--force-conflicts", "-f", "-")
	run("serverside-applied", gadgets, "apply", "--server-side", "--force-conflicts", "-f", "-")
	run("what the gadget is like", "", "explain", "gadgets.spec")
	run("COLOR", "", "get", "gg")
	run("gadgets", "", "api-resources", "--api-group=example.com")
	two.Eventually(20*time.Second, "the other device serves gadgets", func() error {
		out, err := two.Kubectl("", "get", "gadget", "g", "-o", "jsonpath={.spec}")
		if err != nil || !strings.Contains(out, `"color":"red"`) || !strings.Contains(out, `"size":4`) {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	two.Stop()
	two.Start()
	two.WaitReady()
	out, err := two.Kubectl("", "get", "gadgets", "-A")
	expect("red", out, err)
	out, err = two.Kubectl("", "delete", "crd", "gadgets.example.com", "--timeout=30s")
	expect("deleted", out, err)
	out, err = one.Kubectl("", "get", "gadgets")
	if err == nil {
		t.Errorf("gadgets without a definition: %q", out)
	}
	run("created", gadgets, "apply", "-f", "-")
	run("condition met", "", "wait", "--for=condition=established", "crd/gadgets.example.com", "--timeout=20s")
	if out := one.MustKubectl("", "get", "gadgets", "-A", "-o", "name"); out != "" {
		t.Errorf("gadgets that were there before: %q", out)
	}
}
