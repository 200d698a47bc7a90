package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
)

func TestIsPartitionOf(t *testing.T) {
	for _, c := range []struct {
		path, disk string
		want       bool
	}{
		{"/dev/sdb1", "/dev/sdb", true}, {"/dev/sdb", "/dev/sdb", false}, {"/dev/sdba1", "/dev/sdb", false}, {"/dev/mmcblk0p2", "/dev/mmcblk0", true},
		{"/dev/mmcblk01", "/dev/mmcblk0", false}, {"/dev/nvme0n1p1", "/dev/nvme0n1", true}, {"tmpfs", "/dev/sdb", false},
	} {
		if got := isPartitionOf(c.path, c.disk); got != c.want {
			t.Errorf("%s of %s: %v", c.path, c.disk, got)
		}
	}
}

// smallImage is a disk with a boot partition as the images have it.
func smallImage(t *testing.T) string {
	t.Helper()
	const size = 48 << 20
	path := filepath.Join(t.TempDir(), "edged.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := disk.Table{DiskID: 1, Partitions: []disk.Partition{{Start: 2048, Sectors: 40 << 11, MBRType: disk.MBRFAT32}}}
	if err := table.Write(f, size); err != nil {
		t.Fatal(err)
	}
	config, err := pid1.PadConfig([]byte("# example\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := fat.Format(io.NewOffsetWriter(f, 2048*disk.SectorBytes), 40<<20, "EDGED", 1, []fat.File{{Name: pid1.ConfigName, Data: config}}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlash(t *testing.T) {
	image, card, config := smallImage(t), filepath.Join(t.TempDir(), "card"), filepath.Join(t.TempDir(), "edged.yaml")
	if err := os.WriteFile(config, []byte("hostname: cellar\ncluster: home\nsecret: a long random text\nbootstrap-expect: 3\nlabels: {room: cellar, floor: 3}\ntaints: ['a=b:NoSchedule']\nedged: {voters: 3}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	if code := dispatch(context.Background(), env{[]string{"flash", "--image", image, "--device", card, "--config", config}, nil, &out, &stderr}); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	if !strings.Contains(out.String(), "written and verified") {
		t.Errorf("printed %q", out.String())
	}
	if fi, err := os.Stat(card); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the card, which holds a secret, has the mode %v: %v", fi.Mode(), err)
	}
	f, err := os.OpenFile(card, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, v, err := slot.Boot(f, 48<<20)
	if err != nil {
		t.Fatal(err)
	}
	data, err := v.ReadFile(pid1.ConfigName)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := pid1.ParseConfig(data); err != nil || c.Hostname != "cellar" {
		t.Errorf("the card says %+v, %v", c, err)
	}
}

func TestFlashRefuses(t *testing.T) {
	image, bad := smallImage(t), filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("hostnam: cellar\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	card := filepath.Join(t.TempDir(), "card")
	for text, want := range map[string]string{
		"join: ['10.0.0.2:6443']":                    "join: it needs token",
		"join: ['10.0.0.2:6443']\ntoken: guessed":    "not a token: want the text that `edged token create` printed",
		"cluster: home":                              "cluster: it needs secret",
		"cluster: ho me\nsecret: a long random text": "--cluster-name",
		"taints: ['dedicated=io']":                   "--node-taint",
		"labels: {room: a b}":                        "--node-label",
		"edged: {no-such-flag: 1}":                   `unknown key "no-such-flag"`,
		"edged: {log-level: loud}":                   "--log-level",
	} {
		path := filepath.Join(t.TempDir(), "edged.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, stderr bytes.Buffer
		code := dispatch(context.Background(), env{[]string{"flash", "--image", image, "--device", card, "--config", path}, nil, &out, &stderr})
		if code != exitMisuse || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: exit code %d, %q; want it to say %q", text, code, stderr.String(), want)
		}
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no device":     {[]string{"--image", image}, exitMisuse, "--device"},
		"a typo":        {[]string{"--image", image, "--device", card, "--config", bad}, exitMisuse, "hostnam"},
		"no disk":       {[]string{"--image", image, "--device", "/dev/null"}, exitMisuse, "neither a disk nor a file"},
		"not there":     {[]string{"--image", image, "--device", "/dev/nothing"}, exitMisuse, "no such file"},
		"a folder":      {[]string{"--image", image, "--device", t.TempDir()}, exitMisuse, "neither a disk nor a file"},
		"another image": {[]string{"--image", bad, "--device", card}, exitFailed, ""},
	} {
		var out, stderr bytes.Buffer
		code := dispatch(context.Background(), env{append([]string{"flash"}, c.args...), nil, &out, &stderr})
		if code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: exit code %d, %q; want %d, %q", name, code, stderr.String(), c.code, c.want)
		}
	}
}

// TestFlashLeavesTheCard: what is no image of edged is refused with the card as it was.
func TestFlashLeavesTheCard(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	card := write("card", []byte("holiday photographs"))
	whole, err := os.ReadFile(smallImage(t))
	if err != nil {
		t.Fatal(err)
	}
	foreign := bytes.Clone(whole) // a boot partition without edged.yaml
	if err := fat.Format(&sliceAt{foreign[2048*disk.SectorBytes:]}, 40<<20, "OTHER", 1, []fat.File{{Name: "config.txt", Data: []byte("#")}}); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(foreign); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		write("text.img", []byte("an upgrade, or a page that says 404")), write("noise.img", bytes.Repeat([]byte("noise"), 1<<20)), write("cut.img", whole[:1<<20]),
		write("foreign.img", foreign), write("foreign.img.gz", packed.Bytes()), write("cut.img.gz", packed.Bytes()[:100]),
	} {
		var out, stderr bytes.Buffer
		code := dispatch(context.Background(), env{[]string{"flash", "--image", path, "--device", card}, nil, &out, &stderr})
		if code != exitFailed || !strings.Contains(stderr.String(), path+" is not an image of edged") {
			t.Errorf("%s: exit code %d, %q", filepath.Base(path), code, stderr.String())
		}
		if got, err := os.ReadFile(card); err != nil || string(got) != "holiday photographs" {
			t.Fatalf("%s: the card has %d bytes, %v", filepath.Base(path), len(got), err)
		}
	}
}

// sliceAt writes into bytes.
type sliceAt struct{ b []byte }

func (s *sliceAt) WriteAt(p []byte, off int64) (int, error) { return copy(s.b[off:], p), nil }

// TestFlashRefusesDisksInUse: one that is mounted here, by name, and one that is held
// where no table of ours shows it, by the kernel's word; the same disk is written when
// nobody holds it, unless it is too small.
func TestFlashRefusesDisksInUse(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a disk needs root")
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	run("truncate", "-s", "64M", disk)
	run("mkfs.ext4", "-q", disk)
	dev := run("losetup", "--find", "--show", disk)
	t.Cleanup(func() { run("losetup", "--detach", dev) })
	image := smallImage(t)
	flash := func() (int, string) {
		var out, stderr bytes.Buffer
		code := dispatch(context.Background(), env{[]string{"flash", "--image", image, "--device", dev}, nil, &out, &stderr})
		return code, stderr.String()
	}

	run("mount", dev, dir)
	code, said := flash()
	run("umount", dir)
	if code != exitFailed || !strings.Contains(said, "is in use ("+dev+" on "+dir+")") {
		t.Errorf("mounted: exit code %d, %q", code, said)
	}

	// Mounted for another process alone, until its standard input ends.
	other := exec.Command("unshare", "-m", "sh", "-c", `mount "$0" "$1" && echo mounted && read _; umount "$1"`, dev, dir)
	in, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(pipe, make([]byte, len("mounted\n"))); err != nil {
		t.Error(err)
	}
	code, said = flash()
	if err := errors.Join(in.Close(), other.Wait()); err != nil {
		t.Fatal(err)
	}
	if code != exitFailed || !strings.Contains(said, "is in use by the system") {
		t.Errorf("mounted elsewhere: exit code %d, %q", code, said)
	}

	if code, said = flash(); code != exitOK {
		t.Errorf("in nobody's use: exit code %d, %q", code, said)
	}

	if err := os.Truncate(disk, 32<<20); err != nil {
		t.Fatal(err)
	}
	run("losetup", "--set-capacity", dev)
	before := run("sha256sum", disk)
	if code, said = flash(); code != exitFailed || !strings.Contains(said, "has 32 MB and the image takes 41") {
		t.Errorf("too small: exit code %d, %q", code, said)
	}
	if run("sha256sum", disk) != before {
		t.Error("a disk that is too small was written to")
	}
}
