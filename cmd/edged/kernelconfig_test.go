package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestBuildrootKernelOptions: the Buildroot package turns on what `edged check`
// asks a kernel for, and nothing that nobody asks for.
func TestBuildrootKernelOptions(t *testing.T) {
	const makefile = "../../buildroot/external/package/edged/edged.mk"
	text, err := os.ReadFile(makefile)
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for _, m := range regexp.MustCompile(`\$\(call KCONFIG_ENABLE_OPT,CONFIG_(\w+)\)`).FindAllSubmatch(text, -1) {
		have = append(have, string(m[1]))
	}
	for _, f := range kernelNeeds() {
		want = append(want, strings.Fields(f.options)...)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	if len(want) < 30 {
		t.Fatalf("`edged check` names only %q", want)
	}
	for _, o := range want {
		if !slices.Contains(have, o) {
			t.Errorf("%s does not turn on CONFIG_%s, which `edged check` asks for", makefile, o)
		}
	}
	for i, o := range have {
		if !slices.Contains(want, o) {
			t.Errorf("%s turns on CONFIG_%s, which `edged check` does not ask for", makefile, o)
		}
		if slices.Contains(have[:i], o) {
			t.Errorf("%s has CONFIG_%s twice", makefile, o)
		}
	}
}
