package pid1

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"edged/buildroot/disk"
)

// TestOpenFreshSeesPartitionsWrites: what is written to a partition is read from its
// disk, although the disk was read before and is not closed by all.
func TestOpenFreshSeesPartitionsWrites(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a disk needs root")
	}
	const size, start, sectors = 8 << 20, 2048, 2048
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	dev := run("losetup", "--find", "--show", image)
	t.Cleanup(func() { run("losetup", "--detach", dev) })
	run("addpart", dev, "1", strconv.Itoa(start), strconv.Itoa(sectors))
	t.Cleanup(func() { run("delpart", dev, "1") })
	part, err := os.OpenFile(dev+"p1", os.O_RDWR, 0) // held, as a mounted one is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { part.Close() })
	read := func(open func() (*os.File, error)) string {
		t.Helper()
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 512)
		if _, err := io.ReadFull(io.NewSectionReader(f, start*disk.SectorBytes, 512), b); err != nil {
			t.Fatal(err)
		}
		return strings.TrimRight(string(b), "\x00")
	}
	plain := func() (*os.File, error) { return os.Open(dev) }
	fresh := func() (*os.File, error) { return openFresh(dev, os.O_RDONLY) }
	for _, text := range []string{"the first", "the second"} {
		read(plain)
		if _, err := part.WriteAt(append([]byte(text), make([]byte, 512-len(text))...), 0); err != nil {
			t.Fatal(err)
		}
		if err := part.Sync(); err != nil {
			t.Fatal(err)
		}
		if got := read(plain); got == text {
			t.Logf("this kernel shows %q to all", text)
		}
		if got := read(fresh); got != text {
			t.Errorf("read %q, want %q", got, text)
		}
	}
}
