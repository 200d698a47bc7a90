package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// boards are the defconfigs that the tree has.
var boards = []string{"rpi2", "rpi3_64", "rpi4_64", "rpi5", "rpizero2w", "rpizerow", "x86_64"}

// architectures that the package is built for, by what selects them in a
// defconfig.
var architectures = []string{"BR2_aarch64", "BR2_x86_64", "BR2_cortex_a7", "BR2_arm1176jzf_s"}

const inTree = "$(BR2_EXTERNAL_EDGED_PATH)/"

// tree is buildroot/external while it is checked.
type tree struct {
	dir      string
	symbols  map[string]bool // defined in Config.in
	problems []string
}

func (t *tree) complain(format string, args ...any) {
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
}

func (t *tree) has(path string) bool {
	_, err := os.Stat(filepath.Join(t.dir, path))
	return err == nil
}

func (t *tree) read(path string) string {
	data, err := os.ReadFile(filepath.Join(t.dir, path))
	if err != nil {
		t.complain("%v", err)
	}
	return string(data)
}

// check looks at a tree and returns what is wrong with it.
func check(dir string) ([]string, error) {
	t := &tree{dir: dir, symbols: map[string]bool{}}
	if !strings.HasPrefix(t.read("external.desc"), "name: EDGED\n") {
		t.complain("external.desc does not name the tree EDGED")
	}
	t.configIn("Config.in")
	t.packages()
	names, err := filepath.Glob(filepath.Join(dir, "configs", "*"))
	if err != nil {
		return nil, err
	}
	var have []string
	for _, n := range names {
		have = append(have, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(n), "edged_"), "_defconfig"))
		t.defconfig("configs/" + filepath.Base(n))
	}
	if !slices.Equal(have, boards) {
		t.complain("configs: there are %q, want %q", have, boards)
	}
	return t.problems, t.scripts()
}

var (
	define = regexp.MustCompile(`(?m)^\s*config (\w+)$`)
	source = regexp.MustCompile(`(?m)^source "\$BR2_EXTERNAL_EDGED_PATH/(.*)"$`)
	symbol = regexp.MustCompile(`BR2_PACKAGE_EDGED\w*`)
)

// attributes of an entry come in this order, which check-package wants.
var attributes = map[string]int{"bool": 1, "prompt": 1, "string": 1, "default": 2, "depends": 3, "select": 4, "help": 5}

const (
	helpIndent = "\t  "
	helpMax    = 62 // characters of a line, without its indentation
)

// style finds what check-package would of an entry's attributes and help.
func (t *tree) style(path, text string) {
	last := 0
	for i, line := range strings.Split(text, "\n") {
		if help, is := strings.CutPrefix(line, helpIndent); is {
			if len(help) > helpMax {
				t.complain("%s:%d: %d characters of help, more than %d", path, i+1, len(help), helpMax)
			}
			continue
		}
		f := strings.Fields(line)
		if len(f) == 0 || line[0] != '\t' { // another entry
			last = 0
			continue
		}
		if now := attributes[f[0]]; now > 0 {
			if now < last {
				t.complain("%s:%d: %s comes before what is above it: type, default, depends, select, help", path, i+1, f[0])
			}
			last = now
		}
	}
}

func (t *tree) configIn(path string) {
	text := t.read(path)
	t.style(path, text)
	for _, m := range define.FindAllStringSubmatch(text, -1) {
		if t.symbols[m[1]] {
			t.complain("%s defines %s a second time", path, m[1])
		}
		t.symbols[m[1]] = true
	}
	for _, m := range source.FindAllStringSubmatch(text, -1) {
		t.configIn(m[1])
	}
	for _, s := range symbol.FindAllString(text, -1) {
		if !t.symbols[s] && !strings.Contains(text, "config "+s+"\n") {
			t.complain("%s uses %s, which nobody defines", path, s)
		}
	}
}

// packages: each has what Buildroot looks for, and uses symbols that are there.
func (t *tree) packages() {
	dirs, err := filepath.Glob(filepath.Join(t.dir, "package", "*"))
	if err != nil || len(dirs) == 0 {
		t.complain("there is no package: %v", err)
	}
	top := t.read("Config.in")
	for _, d := range dirs {
		name := filepath.Base(d)
		if !strings.Contains(top, "/package/"+name+"/Config.in") {
			t.complain("Config.in does not source package %s", name)
		}
		mk := t.read("package/" + name + "/" + name + ".mk")
		for _, s := range symbol.FindAllString(mk, -1) {
			if !t.symbols[s] {
				t.complain("%s.mk uses %s, which no Config.in defines", name, s)
			}
		}
		for _, m := range regexp.MustCompile(`\$\(EDGED_PKGDIR\)/(\S+)`).FindAllStringSubmatch(mk, -1) {
			if !t.has("package/" + name + "/" + m[1]) {
				t.complain("%s.mk installs %s, which is not there", name, m[1])
			}
		}
	}
}

var (
	setting = regexp.MustCompile(`^(BR2_\w+)=(y|\d+|".*")$`)
	unset   = regexp.MustCompile(`^# (BR2_\w+) is not set$`)
	kernel  = regexp.MustCompile(`/(linux-[0-9a-f]+\.tar\.gz)$`)
)

func (t *tree) defconfig(path string) {
	values := map[string]string{}
	for _, line := range strings.Split(strings.TrimSuffix(t.read(path), "\n"), "\n") {
		name, value := "", "n"
		if m := setting.FindStringSubmatch(line); m != nil {
			name, value = m[1], strings.Trim(m[2], `"`)
		} else if m := unset.FindStringSubmatch(line); m != nil {
			name = m[1]
		} else {
			t.complain("%s: %q is no setting", path, line)
			continue
		}
		if _, twice := values[name]; twice {
			t.complain("%s sets %s twice", path, name)
		}
		values[name] = value
		for _, word := range strings.Fields(value) {
			if f, ours := strings.CutPrefix(word, inTree); ours && !t.has(f) {
				t.complain("%s: %s names %s, which is not there", path, name, f)
			}
		}
		if symbol.MatchString(name) && !t.symbols[name] {
			t.complain("%s: no Config.in defines %s", path, name)
		}
	}
	for _, name := range []string{"BR2_PACKAGE_EDGED", "BR2_LINUX_KERNEL", "BR2_DOWNLOAD_FORCE_CHECK_HASHES", "BR2_TARGET_ROOTFS_EXT2", "BR2_PACKAGE_HOST_GENIMAGE", "BR2_PACKAGE_CA_CERTIFICATES"} {
		if values[name] != "y" {
			t.complain("%s does not set %s", path, name)
		}
	}
	if !slices.ContainsFunc(architectures, func(a string) bool { return values[a] == "y" }) {
		t.complain("%s is for none of the architectures that edged is built for", path)
	}
	if m := kernel.FindStringSubmatch(values["BR2_LINUX_KERNEL_CUSTOM_TARBALL_LOCATION"]); m != nil {
		if !strings.Contains(t.read("board/patches/linux/linux.hash"), "  "+m[1]+"\n") {
			t.complain("%s: linux.hash has no hash of %s", path, m[1])
		}
	}
	if f, ours := strings.CutPrefix(values["BR2_PACKAGE_RPI_FIRMWARE_CMDLINE_FILE"], inTree); ours && !strings.Contains(t.read(f), " cgroup_enable=memory ") {
		t.complain("%s: without cgroup_enable=memory in %s a Pi has no memory limits", path, f)
	}
	t.genimage(path, "board/genimage-"+values["BR2_ROOTFS_POST_SCRIPT_ARGS"]+".cfg")
}

// genimage: what partitions hold is made, by the file itself or by Buildroot.
func (t *tree) genimage(defconfig, path string) {
	if !t.has(path) {
		t.complain("%s: its image's %s is not there", defconfig, path)
		return
	}
	text := t.read(path)
	if open, shut := strings.Count(text, "{"), strings.Count(text, "}"); open != shut || open == 0 {
		t.complain("%s opens %d braces and closes %d", path, open, shut)
	}
	made := []string{"rootfs.ext4", "bzImage", "efi-part/EFI"}
	for _, m := range regexp.MustCompile(`(?m)^image (\S+) \{$`).FindAllStringSubmatch(text, -1) {
		made = append(made, m[1])
	}
	for _, m := range regexp.MustCompile(`image = "(.*)"`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(made, m[1]) {
			t.complain("%s: nobody makes %s", path, m[1])
		}
	}
}

// scripts: Buildroot starts them by name.
func (t *tree) scripts() error {
	return filepath.WalkDir(filepath.Join(t.dir, "board"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".sh" {
			return err
		}
		if fi, err := d.Info(); err != nil || fi.Mode()&0o111 == 0 {
			t.complain("%s cannot be started: %v", path, err)
		}
		return nil
	})
}
