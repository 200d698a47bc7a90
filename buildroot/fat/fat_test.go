package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// memory is a volume in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

const testSize = 40 << 20

func noSync() error { return nil }

func tree() []File {
	many := []File{}
	for i := range 60 {
		many = append(many, File{Name: fmt.Sprintf("a rather long name %02d.dtb", i), Data: bytes.Repeat([]byte{byte(i)}, i*100)})
	}
	return []File{
		{Name: "config.txt", Data: bytes.Repeat([]byte("c"), 512)},
		{Name: "BOOTX64.EFI", Data: []byte("efi")},
		{Name: "edged-a+3.conf", Data: []byte("entry")},
		{Name: "empty.txt"},
		{Name: "a", Room: 2 << 20, Dir: []File{{Name: "vmlinuz", Data: bytes.Repeat([]byte("kernel"), 100000)}, {Name: "deep", Dir: many}}},
		{Name: "b", Room: 2 << 20, Dir: []File{}},
		{Name: "Mixed.Case", Data: []byte("mixed")},
	}
}

func format(t testing.TB) memory {
	m := make(memory, testSize)
	if err := Format(m, testSize, "edged", 0x12345678, tree()); err != nil {
		t.Fatal(err)
	}
	return m
}

// check compares a volume with a tree.
func check(t *testing.T, v *Volume, dir string, files []File) {
	t.Helper()
	have, err := v.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range files {
		path := dir + "/" + f.Name
		if f.Dir != nil {
			want = append(want, f.Name+"/")
			check(t, v, path, f.Dir)
			continue
		}
		want = append(want, f.Name)
		data, err := v.ReadFile(path)
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s: %d bytes, %v; want %d", path, len(data), err, len(f.Data))
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s holds %q, want %q", dir, have, want)
	}
}

func TestReadsBackWhatItWrote(t *testing.T) {
	m := format(t)
	v, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	check(t, v, "", tree())
	if !bytes.Equal(m, format(t)) {
		t.Error("two volumes of the same tree differ")
	}
}

// TestOthersAgree has fsck.fat and mtools read the volume.
func TestOthersAgree(t *testing.T) {
	for _, tool := range []string{"fsck.fat", "mtype"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not here", tool)
		}
	}
	m := format(t)
	v, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.ReplaceDir(m, "b", 2<<20, tree()[4].Dir, noSync); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fat.img")
	if err := os.WriteFile(path, m, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.fat", "-n", path).CombinedOutput(); err != nil {
		t.Errorf("fsck.fat: %v\n%s", err, out)
	}
	for name, want := range map[string]string{"::config.txt": strings.Repeat("c", 512), "::edged-a+3.conf": "entry", "::Mixed.Case": "mixed", "::b/deep/a rather long name 03.dtb": strings.Repeat("\x03", 300)} {
		if out, err := exec.Command("mtype", "-i", path, name).CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("mtype %s: %q, %v", name, out, err)
		}
	}
}

func TestOverwrite(t *testing.T) {
	m := format(t)
	before := bytes.Clone(m)
	v, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Overwrite(m, "config.txt", []byte("short")); err == nil {
		t.Error("a shorter content was taken")
	}
	if !bytes.Equal(m, before) {
		t.Error("a refused content was written")
	}
	if err := v.Overwrite(m, "CONFIG.TXT", bytes.Repeat([]byte("d"), 512)); err != nil {
		t.Fatal(err)
	}
	sectors := 0
	for i := 0; i < len(m); i += sectorBytes {
		if !bytes.Equal(m[i:i+sectorBytes], before[i:i+sectorBytes]) {
			sectors++
		}
	}
	if sectors != 1 {
		t.Errorf("%d sectors changed, want 1", sectors)
	}
}

// TestReplaceDirCutShort stops after every write: nothing outside the folder is
// harmed, and a second attempt succeeds.
func TestReplaceDirCutShort(t *testing.T) {
	files := tree()[4].Dir
	cut := errors.New("cut")
	for n := 0; ; n++ {
		m := format(t)
		v, err := Open(m)
		if err != nil {
			t.Fatal(err)
		}
		w := &limited{m, n, cut}
		err = v.ReplaceDir(w, "b", 2<<20, files, noSync)
		if err != nil && !errors.Is(err, cut) {
			t.Fatal(err)
		}
		rest := tree()
		check(t, v, "a", rest[4].Dir)
		if data, err := v.ReadFile("Mixed.Case"); err != nil || string(data) != "mixed" {
			t.Fatalf("after %d writes: Mixed.Case: %q, %v", n, data, err)
		}
		if err == nil {
			check(t, v, "b", files)
			return
		}
		if err := v.ReplaceDir(m, "b", 2<<20, files, noSync); err != nil {
			t.Fatal(err)
		}
		check(t, v, "b", files)
	}
}

type limited struct {
	memory
	left int
	err  error
}

func (l *limited) WriteAt(p []byte, off int64) (int, error) {
	if l.left--; l.left < 0 {
		return 0, l.err
	}
	return l.memory.WriteAt(p, off)
}

func TestRefuses(t *testing.T) {
	m := format(t)
	v, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	big := []File{{Name: "vmlinuz", Data: make([]byte, 3<<20)}}
	if err := v.ReplaceDir(m, "b", 2<<20, big, noSync); !errors.Is(err, ErrFull) {
		t.Errorf("more than the room: %v", err)
	}
	if err := Format(m, 8<<20, "edged", 1, nil); !errors.Is(err, ErrFull) {
		t.Errorf("a volume too small for FAT32: %v", err)
	}
	if err := Format(m, testSize, "edged", 1, []File{{Name: "big", Data: make([]byte, testSize)}}); !errors.Is(err, ErrFull) {
		t.Errorf("a file larger than the volume: %v", err)
	}
	if _, err := Open(make(memory, testSize)); !errors.Is(err, ErrNotFAT) {
		t.Errorf("an empty volume: %v", err)
	}
	if _, err := v.ReadFile("none"); !errors.Is(err, ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// FuzzDir reads folders of any bytes.
func FuzzDir(f *testing.F) {
	m := format(f)
	v, err := Open(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(m[v.g.offset(rootCluster):][:4096]))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, n := range parseDir(raw) {
			if n.size < 0 {
				t.Errorf("%q has a size of %d", n.name, n.size)
			}
		}
	})
}
