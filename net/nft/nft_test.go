package nft_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"edged/internal/netns/netnstest"
	"edged/net/nft"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// list is what nft shows of our table.
func list(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func open(t testing.TB) *nft.Table {
	tab := nft.Open()
	t.Cleanup(func() {
		if err := tab.Remove(); err != nil {
			t.Error(err)
		}
		if out := list(t); out != "" {
			t.Errorf("rules are left:\n%s", out)
		}
	})
	return tab
}

func key(proto uint8, port uint16) string {
	return string(nft.AppendPort(nft.AppendProto(nil, proto), port))
}

// ruleset is a small one: ports maps a port to the chain it leads to.
func ruleset(section string, ports map[uint16]string, chains ...string) *nft.Ruleset {
	var elems []nft.Element
	for port, chain := range ports {
		elems = append(elems, nft.Element{Key: key(6, port), Verdict: nft.Goto(section + "-" + chain)})
	}
	m := &nft.Set{Name: section + "-ports", Key: []nft.Type{nft.Proto(), nft.Port()}, Verdict: true,
		Parts: []nft.Part{{Name: "all", Elements: nft.NewElements(elems)}}}
	r := &nft.Ruleset{Sets: []*nft.Set{m}, Chains: []nft.Chain{{
		Name: section + "-input", Base: &nft.Base{Type: "filter", Hook: "input", Priority: nft.PriorityFilter},
		Rules: []nft.Rule{{nft.VerdictMap(m, nft.L4Proto(), nft.DstPort())}},
	}}}
	for _, c := range chains {
		r.Chains = append(r.Chains, nft.Chain{Name: section + "-" + c, Rules: []nft.Rule{{nft.Drop()}}})
	}
	return r
}

func TestApplyReplacesWhatChanged(t *testing.T) {
	tab := open(t)
	steps := []struct {
		ports  map[uint16]string
		chains []string
	}{
		{map[uint16]string{80: "one", 81: "one"}, []string{"one"}},
		{map[uint16]string{80: "two", 82: "one"}, []string{"one", "two"}}, // changed, removed, added
		{map[uint16]string{80: "two"}, []string{"two"}},                   // a chain goes
		{nil, nil},
		{map[uint16]string{90: "one"}, []string{"one"}},
	}
	for i, s := range steps {
		if err := tab.Apply("a", ruleset("a", s.ports, s.chains...)); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		out := list(t)
		if got := strings.Count(out, "goto a-"); got != len(s.ports) {
			t.Errorf("step %d: %d elements, want %d:\n%s", i, got, len(s.ports), out)
		}
		for port, chain := range s.ports {
			if want := fmt.Sprintf("tcp . %d : goto a-%s", port, chain); !strings.Contains(out, want) {
				t.Errorf("step %d: %q is missing:\n%s", i, want, out)
			}
		}
		if got := strings.Count(out, "\tchain "); got != 1+len(s.chains) {
			t.Errorf("step %d: %d chains, want %d:\n%s", i, got, 1+len(s.chains), out)
		}
	}
}

func TestSectionsDoNotTouchEachOther(t *testing.T) {
	tab := open(t)
	for _, section := range []string{"a", "b"} {
		if err := tab.Apply(section, ruleset(section, map[uint16]string{80: "one"}, "one")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.Apply("a", ruleset("a", nil)); err != nil {
		t.Fatal(err)
	}
	if out := list(t); !strings.Contains(out, "tcp . 80 : goto b-one") || strings.Contains(out, "goto a-one") {
		t.Errorf("after emptying a:\n%s", out)
	}
}

// TestRestart: a new process knows nothing of what the kernel holds, and ends
// with the same table, while what packets wrote stays.
func TestRestart(t *testing.T) {
	dynamic := func(section string) *nft.Ruleset {
		r := ruleset(section, map[uint16]string{80: "one"}, "one")
		seen := &nft.Set{Name: section + "-seen", Key: []nft.Type{nft.IPv4(), nft.Port()}, Value: []nft.Type{nft.Mark()}, Dynamic: true}
		r.Sets = append(r.Sets, seen)
		r.Chains[1].Rules = append([]nft.Rule{{
			nft.Update(seen, time.Hour, []nft.Value{nft.SrcAddr(false), nft.DstPort()}, nft.ConnMark()),
		}}, r.Chains[1].Rules...)
		return r
	}
	if err := open(t).Apply("a", dynamic("a")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "add", "element", "inet", "edged", "a-seen", "{ 192.0.2.7 . 80 : 0x7 }").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := list(t)
	if err := nft.Open().Apply("a", dynamic("a")); err != nil {
		t.Fatal(err)
	}
	after := list(t)
	if !strings.Contains(after, "192.0.2.7 . 80") {
		t.Errorf("an element that packets wrote is gone:\n%s", after)
	}
	for _, word := range []string{"chain", "map", "set", "goto", "update"} {
		if a, b := strings.Count(before, word), strings.Count(after, word); a != b {
			t.Errorf("%d times %q before the restart, %d after:\n%s", a, word, b, after)
		}
	}
}

func TestIntactNoticesStrangers(t *testing.T) {
	tab := open(t)
	want := ruleset("a", map[uint16]string{80: "one"}, "one")
	if err := tab.Apply("a", want); err != nil {
		t.Fatal(err)
	}
	if ok, err := tab.Intact("a"); !ok || err != nil {
		t.Errorf("untouched: %v, %v", ok, err)
	}
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if ok, err := tab.Intact("a"); ok || err != nil {
		t.Errorf("after a flush: %v, %v", ok, err)
	}
	if err := tab.Apply("a", want); err != nil {
		t.Fatal(err)
	}
	if out := list(t); !strings.Contains(out, "tcp . 80 : goto a-one") {
		t.Errorf("not mended:\n%s", out)
	}
}

// TestRefusedTransaction: the kernel refuses rules that loop; the table stays as
// it was, and the next Apply works.
func TestRefusedTransaction(t *testing.T) {
	tab := open(t)
	good := ruleset("a", map[uint16]string{80: "one"}, "one")
	if err := tab.Apply("a", good); err != nil {
		t.Fatal(err)
	}
	bad := ruleset("a", map[uint16]string{80: "one"}, "one")
	bad.Chains[1].Rules = []nft.Rule{{nft.Jump("a-one")}}
	if err := tab.Apply("a", bad); err == nil {
		t.Error("a loop was accepted")
	}
	if out := list(t); !strings.Contains(out, "drop") {
		t.Errorf("the old rules are gone:\n%s", out)
	}
	if err := tab.Apply("a", good); err != nil {
		t.Error(err)
	}
}

func TestRulesThatCannotBeCompiled(t *testing.T) {
	m := &nft.Set{Name: "a-m", Key: []nft.Type{nft.IPv4()}, Value: []nft.Type{nft.IPv4()}}
	for _, tt := range []struct {
		want string
		rule nft.Rule
	}{
		{"both address families", nft.Rule{nft.In(m, nft.SrcAddr(false), nft.DstAddr(true))}},
		{"registers", nft.Rule{nft.In(m, nft.SrcAddr(true), nft.DstAddr(true), nft.SrcAddr(true), nft.DstAddr(true), nft.DstPort())}},
	} {
		err := open(t).Apply("a", &nft.Ruleset{Sets: []*nft.Set{m}, Chains: []nft.Chain{{Name: "a-c", Rules: []nft.Rule{tt.rule}}}})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.rule, err, tt.want)
		}
	}
}

func TestFeatures(t *testing.T) {
	for _, f := range nft.Features() {
		if err := f.Probe(); err != nil {
			if f.Required || !errors.Is(err, nft.ErrNotApplied) {
				t.Errorf("%s (%s): %v", f.Name, f.Purpose, err)
			}
		}
	}
	if out := list(t); out != "" {
		t.Errorf("probes left rules:\n%s", out)
	}
}

func TestText(t *testing.T) {
	r := ruleset("a", map[uint16]string{443: "one", 80: "one"}, "one")
	r.Chains[1].Rules = []nft.Rule{{nft.InPrefix(nft.SrcAddr(true), netip.MustParsePrefix("fd42::1/64")), nft.Accept()}}
	want := "\tchain a-input {\n\t\ttype filter hook input priority 0; policy accept;\n\t\tmeta l4proto . th dport vmap @a-ports\n\t}\n" +
		"\n\tchain a-one {\n\t\tip6 saddr fd42::/64 accept\n\t}\n" +
		"\n\tmap a-ports {\n\t\ttype inet_proto . inet_service : verdict\n\t\ttcp . 443 : goto a-one\n\t\ttcp . 80 : goto a-one\n\t}\n"
	if got := r.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
