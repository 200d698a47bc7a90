package harness

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edged/buildroot/pid1"
)

// TestFleet gives three machines the same card: they become one cluster, run a
// Pod each, lose one and go on, and have it back. Then all get another system, one
// after the other, and one that is broken, which the first refuses for all.
// EDGED_FLEET=lose or =upgrade is half of it.
func TestFleet(t *testing.T) {
	part := os.Getenv("EDGED_FLEET")
	if part == "" {
		t.Skip("EDGED_FLEET is not set: three machines at once take minutes")
	}
	const secret = "a long and random text of this fleet"
	card := Options{
		Board: "rpi", MemoryMB: 384, Preload: []string{helloArchive(t, "arm64")}, Fleet: NewFleet(t, 3),
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
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   status
			}
		}
		err = a.Do(http.MethodGet, "/api/v1/nodes?labelSelector=room%3Dcellar", nil, &list)
		for _, i := range list.Items {
			if i.Status.has("Ready") {
				out = append(out, i.Metadata.Name)
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
		runOn(a, "on-", name)
	}
	for _, name := range names {
		a.PodPhase("on-"+name, "Running", wide)
	}
	t.Logf("a Pod on each after %v", time.Since(began).Round(time.Second))

	if part != "upgrade" {
		loseOne(t, machines, names, want)
		t.Logf("without the first and with it again after %v", time.Since(began).Round(time.Second))
	}
	if part == "lose" {
		return
	}
	rollSystems(t, machines, a)
	t.Logf("upgraded after %v", time.Since(began).Round(time.Second))
	refuseSystem(t, machines, a)
	want(a, slices.Clone(names))
	t.Logf("a broken upgrade refused after %v", time.Since(began).Round(time.Second))
}

// loseOne has the others go on without the first machine, and take it back.
func loseOne(t *testing.T, machines []*Machine, names []string, want func(*API, []string)) {
	t.Helper()
	machines[0].Cut()
	b := machines[1].API(wide)
	want(b, slices.Clone(names[1:]))
	poll(t, wide, "a write without the lost device", func() error {
		_, err := b.Kubectl("", "create", "configmap", fmt.Sprintf("without-%d", time.Now().UnixNano()))
		return err
	})
	b.PodPhase("on-"+names[1], "Running", wide)

	machines[0].On()
	want(b, slices.Clone(names))
	runOn(b, "again-on-", names[0])
	b.PodPhase("again-on-"+names[0], "Running", wide)
}

// runOn makes a Pod on a device.
func runOn(a *API, prefix, name string) {
	a.t.Helper()
	if _, err := a.Kubectl("", "run", prefix+name, "--image=example.org/hello:v1", "--image-pull-policy=Never", "--overrides", fmt.Sprintf(`{"spec":{"nodeName":%q}}`, name)); err != nil {
		a.t.Fatal(err)
	}
}

// web is a Deployment that a budget keeps from being away as a whole.
const web = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":2,"selector":{"matchLabels":{"app":"web"}},
"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"c","image":"example.org/hello:v1","imagePullPolicy":"Never"}]}}}}
{"apiVersion":"policy/v1","kind":"PodDisruptionBudget","metadata":{"name":"web"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"app":"web"}}}}`

// rollSystems has all machines take another system, from the slot they are in to
// the other, a Deployment being there all the time.
func rollSystems(t *testing.T, machines []*Machine, a *API) {
	t.Helper()
	if _, err := a.Kubectl(web, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	available := func() (string, error) {
		return a.Kubectl("", "get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}")
	}
	poll(t, wide, "the Deployment", func() error {
		n, err := available()
		if err == nil && n != "2" {
			err = fmt.Errorf("%q of 2 are available", n)
		}
		return err
	})
	upgrade(t, a, "all", nextUpgrade(t, "rpi", filepath.Join(os.Getenv("EDGED_IMAGES"), "edged-rpi.upgrade")), "--cluster")
	for left := slices.Clone(machines); len(left) > 0; {
		var m *Machine
		poll(t, 2*wide, "a machine to restart", func() error {
			if i := slices.IndexFunc(left, func(m *Machine) bool { return m.Has(`edged-init: reboot 0 tryboot`) }); i >= 0 {
				m = left[i]
				left = slices.Delete(left, i, i+1)
				return nil
			}
			return errors.New("none has")
		})
		if n, err := available(); err == nil && n != "1" && n != "2" {
			t.Errorf("while %s restarts %q of 2 replicas are available", m.Name(wide), n)
		}
		out, err := a.Kubectl("", "get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName="+m.Name(wide), "-o", "name")
		if err == nil && out != "" {
			t.Errorf("%s restarts and was not drained: %s", m.Name(wide), out)
		}
		m.Restarted(0, wide)
		m.WaitFor(0, "edged-init: slot b is kept", wide)
		t.Logf("%s has it", m.Name(wide))
	}
	phase(t, a, "done")
	out, err := a.Kubectl("", "get", "nodes", "-o", "jsonpath={.items[*].spec.unschedulable}")
	if err != nil || out != "" {
		t.Errorf("after the upgrade a device is cordoned: %q, %v", out, err)
	}
}

// refuseSystem has the first machine come back from a system that does not start:
// no other is touched.
func refuseSystem(t *testing.T, machines []*Machine, a *API) {
	t.Helper()
	var marks []int
	for _, m := range machines {
		marks = append(marks, m.Mark())
	}
	upgrade(t, a, "broken", brokenUpgrade(t, "rpi", filepath.Join(os.Getenv("EDGED_IMAGES"), "edged-rpi.upgrade")), "--cluster")
	first := -1
	poll(t, 2*wide, "a machine to restart", func() error {
		for i, m := range machines {
			if m.HasSince(marks[i], `edged-init: reboot 0 tryboot`) {
				first = i
				return nil
			}
		}
		return errors.New("none has")
	})
	machines[first].Restarted(marks[first], wide) // into slot a, whose kernel finds no root
	machines[first].Ended(wide)
	machines[first].On()
	phase(t, a, "stopped")
	for i, m := range machines {
		if i != first && m.HasSince(marks[i], `edged-init: reboot`) {
			t.Errorf("%s restarted although %s had come back with its old system", m.Name(wide), machines[first].Name(wide))
		}
	}
}

// phase waits until the rolling upgrade is in a phase.
func phase(t *testing.T, a *API, want string) {
	t.Helper()
	poll(t, 2*wide, "the upgrade to be "+want, func() error {
		var state struct{ Data map[string]string }
		err := a.Do(http.MethodGet, "/api/v1/namespaces/kube-system/configmaps/edged-upgrade", nil, &state)
		if err == nil && !strings.Contains(state.Data["state"], fmt.Sprintf(`"phase":%q`, want)) {
			err = errors.New(state.Data["state"])
		}
		return err
	})
}
