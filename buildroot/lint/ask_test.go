package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeBuildroot answers as a Buildroot tree does: its check-package wants files and
// finds PLANTED in them, its kconfig does not take what it calls bogus.
func fakeBuildroot(t *testing.T, info string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "utils"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"utils/check-package": "#!/bin/sh\n[ \"$1\" = -b ] && [ $# -gt 20 ] || exit 2\nshift\nfor f; do [ -f \"$f\" ] || exit 3; done\n! grep -H PLANTED \"$@\"\n",
		"Makefile": "%_defconfig:\n\tgrep -v BOGUS $(BR2_EXTERNAL)/configs/$@ >$(O)/.config\nshow-info:\n\t@echo '" + info + "'\n" +
			".PHONY: show-info\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestAsksBuildroot: what a Buildroot tree says of the tree is told.
func TestAsksBuildroot(t *testing.T) {
	const good = `{"edged": {"downloads": []}, "linux": {"downloads": [{"source": "linux.tar.gz"}]}}`
	for name, c := range map[string]struct{ info, file, add, want string }{
		"nothing":        {good, "README.md", "", ""},
		"check-package":  {good, "package/edged/edged.mk", "# PLANTED\n", "check-package: exit status 1"},
		"a lost setting": {good, "configs/edged_rpi5_defconfig", "BR2_BOGUS=y\n", `edged_rpi5_defconfig: Buildroot does not take "BR2_BOGUS=y"`},
		"no edged":       {`{"linux": {"downloads": []}}`, "README.md", "", "show-info does not know edged"},
	} {
		t.Run(name, func(t *testing.T) {
			external := t.TempDir()
			if err := os.CopyFS(external, os.DirFS("../external")); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(external, c.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(text, c.add...), 0o644); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			problems, err := ask(fakeBuildroot(t, c.info), external, &out)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(problems, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("found %q, want %q", got, c.want)
			}
			if c.info == good && strings.Count(out.String(), "2 packages, 1 downloads\n") != len(boards) {
				t.Errorf("printed %q", out.String())
			}
		})
	}
}
