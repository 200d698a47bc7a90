package harness

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"edged/buildroot/pid1"
)

// TestFleet gives three machines the same card: they become one cluster, run a
// Pod each, lose one and go on.
func TestFleet(t *testing.T) {
	if os.Getenv("EDGED_FLEET") == "" {
		t.Skip("EDGED_FLEET is not set: three machines at once take minutes")
	}
	const secret = "a long and random text of this fleet"
	card := Options{
		Board: "rpi", MemoryMB: 256, Preload: []string{helloArchive(t, "arm64")}, Fleet: NewFleet(t, 3),
		Config: "cluster: home\nsecret: " + secret + "\nbootstrap-expect: 3\nkubeconfig: boot\nlabels: {room: cellar}\n",
	}
	var machines []*Machine
	for range 3 {
		m := New(t, card)
		m.On()
		machines = append(machines, m)
	}
	began := time.Now()
	var names []string
	for _, m := range machines {
		card.Fleet.Find(m, wide)
		m.WaitFor(0, "edged-init: the daemon is ready", 2*wide)
		names = append(names, m.Name(wide))
		text, err := m.Boot().ReadFile(pid1.ConfigName)
		must(t, err)
		if strings.Contains(string(text), secret) {
			t.Errorf("%s: the secret is still on its boot partition", m.Name(wide))
		}
	}
	a := machines[0].API(wide)
	ready := func(a *API) (out []string, err error) {
		text, err := a.Kubectl("", "get", "nodes", "-l", "room=cellar", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		for _, f := range strings.Fields(text) {
			if name, is := strings.CutSuffix(f, "=True"); is {
				out = append(out, name)
			}
		}
		return out, err
	}
	want := func(a *API, names []string) {
		t.Helper()
		slices.Sort(names)
		poll(t, 2*wide, fmt.Sprintf("%q to be Ready, and nobody else", names), func() error {
			have, err := ready(a)
			if slices.Sort(have); err == nil && !slices.Equal(have, names) {
				err = fmt.Errorf("there are %q", have)
			}
			return err
		})
	}
	want(a, slices.Clone(names))
	t.Logf("one cluster after %v", time.Since(began).Round(time.Second))
	for _, name := range names {
		if _, err := a.Kubectl("", "run", "on-"+name, "--image=example.org/hello:v1", "--image-pull-policy=Never", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		a.PodPhase("on-"+name, "Running", wide)
	}
	t.Logf("a Pod on each after %v", time.Since(began).Round(time.Second))

	machines[0].Cut()
	b := machines[1].API(wide)
	want(b, slices.Clone(names[1:]))
	poll(t, wide, "a write without the lost device", func() error {
		_, err := b.Kubectl("", "create", "configmap", fmt.Sprintf("without-%d", time.Now().UnixNano()))
		return err
	})
	b.PodPhase("on-"+names[1], "Running", wide)
	t.Logf("and without the first after %v", time.Since(began).Round(time.Second))
}
