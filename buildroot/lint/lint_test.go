package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	problems, err := check("../external")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// TestFindsPlantedFaults: each fault is found, and told by its name.
func TestFindsPlantedFaults(t *testing.T) {
	for name, c := range map[string]struct{ file, old, new, want string }{
		"bogus option":     {"configs/edged_rpi2_defconfig", "BR2_PACKAGE_EDGED=y", "BR2_PACKAGE_EDGED=y\nBR2_PACKAGE_EDGED_TURBO=y", "no Config.in defines BR2_PACKAGE_EDGED_TURBO"},
		"no edged":         {"configs/edged_rpi5_defconfig", "BR2_PACKAGE_EDGED=y\n", "", "does not set BR2_PACKAGE_EDGED"},
		"twice":            {"configs/edged_rpi5_defconfig", "BR2_LINUX_KERNEL=y", "BR2_LINUX_KERNEL=y\nBR2_LINUX_KERNEL=y", "sets BR2_LINUX_KERNEL twice"},
		"not a setting":    {"configs/edged_rpi5_defconfig", "BR2_LINUX_KERNEL=y", "BR2_LINUX_KERNEL", "is no setting"},
		"kernel's hash":    {"board/patches/linux/linux.hash", "linux-ac69f", "linux-bc69f", "has no hash of linux-ac69f"},
		"file":             {"configs/edged_x86_64_defconfig", "x86_64/linux.fragment", "x86_64/linux.frag", "which is not there"},
		"image":            {"board/genimage-x86_64.cfg", `image = "data.ext4"`, `image = "datum.ext4"`, "nobody makes datum.ext4"},
		"braces":           {"board/genimage-rpi64.cfg", "hdimage {\n\t}", "hdimage {", "braces"},
		"memory controler": {"board/rpi/cmdline.txt", "cgroup_enable=memory ", "", "no memory limits"},
		"symbol":           {"package/edged/edged.mk", "BR2_PACKAGE_EDGED_DIST", "BR2_PACKAGE_EDGED_DISC", "uses BR2_PACKAGE_EDGED_DISC"},
		"installed file":   {"package/edged/edged.mk", "/S90edged \\", "/S91edged \\", "installs S91edged"},
		"order":            {"package/edged/Config.in", "\tstring \"folder with edged-linux-<arch>\"\n", "\tdepends on BR2_aarch64\n\tstring \"folder\"\n", "string comes before"},
		"help":             {"package/edged/Config.in", "\t  folder.\n", "\t  folder, which is one that has a name that is long, longer than help may be.\n", "characters of help"},
		"name":             {"external.desc", "EDGED", "EDGE", "does not name the tree"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS("../external")); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, c.file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), c.old, c.new, 1)
			if changed == string(text) {
				t.Fatalf("%s does not hold %q", c.file, c.old)
			}
			if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
				t.Fatal(err)
			}
			problems, err := check(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(problems, "\n"), c.want) {
				t.Errorf("found %q, want %q", problems, c.want)
			}
		})
	}
}
