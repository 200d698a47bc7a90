package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// modules puts the wanted modules and what they depend on below lib/modules,
// with the list in which order to load them. Kernels that have them built in
// have no folder of modules: then there is nothing to do.
func (b *build) modules(want []string, put func(path string, data []byte) error) error {
	if len(want) == 0 {
		return nil
	}
	release, err := first(filepath.Join(b.kernel, "lib/modules/*"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(release, "modules.builtin"))
	if err != nil {
		return err
	}
	m := &moduleSet{paths: map[string]string{}, builtin: string(builtin), done: map[string]bool{}}
	if err := filepath.WalkDir(release, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil {
			m.paths[underscored(name)] = path
		}
		return err
	}); err != nil {
		return err
	}
	for _, name := range want {
		if err := m.add(name, put); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return put("lib/modules/edged.list", []byte(m.list.String()))
}

type moduleSet struct {
	paths   map[string]string // by name
	builtin string            // modules.builtin
	done    map[string]bool
	list    strings.Builder
}

// underscored: the kernel takes - and _ in names of modules for one.
func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }

func (m *moduleSet) add(name string, put func(string, []byte) error) error {
	name = underscored(name)
	if m.done[name] {
		return nil
	}
	m.done[name] = true
	path, ok := m.paths[name]
	if !ok {
		if strings.Contains(underscored(m.builtin), "/"+name+".ko\n") {
			return nil
		}
		return fmt.Errorf("the kernel does not have it")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	deps, hints, err := dependencies(data)
	if err != nil {
		return err
	}
	for _, dep := range append(m.present(hints), deps...) {
		if err := m.add(dep, put); err != nil {
			return fmt.Errorf("%s: %w", dep, err)
		}
	}
	m.list.WriteString(name + ".ko\n")
	return put("lib/modules/"+name+".ko", data)
}

// present keeps the names that are modules: hints may be aliases.
func (m *moduleSet) present(names []string) (out []string) {
	for _, n := range names {
		if m.paths[underscored(n)] != "" {
			out = append(out, n)
		}
	}
	return out
}

// dependencies reads what modpost wrote into a module: what it needs, and hints
// for what to load before (softdep pre:).
func dependencies(module []byte) (out, hints []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, fmt.Errorf("it has no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, err
	}
	for _, line := range strings.Split(string(info), "\x00") {
		if v, ok := strings.CutPrefix(line, "depends="); ok && v != "" {
			out = append(out, strings.Split(v, ",")...)
		}
		if v, ok := strings.CutPrefix(line, "softdep=pre: "); ok {
			v, _, _ = strings.Cut(v, " post:")
			hints = append(hints, strings.Fields(v)...)
		}
	}
	return out, hints, nil
}

// initrd is a RAM disk with the init program and the modules that the root needs,
// not packed: packing the whole image once does better.
func (b *build) initrd() ([]byte, error) {
	var c cpio
	for _, d := range []string{"dev", "proc", "sys", "root", "lib", "lib/modules"} {
		c.add(d, 0o040755, nil)
	}
	program, err := os.ReadFile(b.init)
	if err != nil {
		return nil, err
	}
	c.add("init", 0o100755, program)
	if err := b.modules(b.board.initModules, func(path string, data []byte) error {
		c.add(path, 0o100644, data)
		return nil
	}); err != nil {
		return nil, err
	}
	return c.end(), nil
}

// cpio writes the newc format.
type cpio struct {
	out bytes.Buffer
	ino int
}

func (c *cpio) add(name string, mode uint32, data []byte) {
	c.ino++
	fmt.Fprintf(&c.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	c.align()
	c.out.Write(data)
	c.align()
}

func (c *cpio) align() {
	for c.out.Len()%4 != 0 {
		c.out.WriteByte(0)
	}
}

func (c *cpio) end() []byte {
	c.add("TRAILER!!!", 0, nil)
	return c.out.Bytes()
}
