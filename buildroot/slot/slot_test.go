package slot_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/slot"
)

// memory is a disk in memory that fails after some writes if told.
type memory struct {
	data []byte
	left int
}

var errCut = errors.New("cut")

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.data)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.left--; m.left < 0 {
		return 0, errCut
	}
	return copy(m.data[off:], p), nil
}

func (m *memory) Sync() error { return nil }

const (
	mib      = 1 << 20
	diskSize = 170 * mib
)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

// newDisk is a disk as image makes it, slot a filled and kept.
func newDisk(t *testing.T, pi bool) *memory {
	t.Helper()
	m := &memory{make([]byte, diskSize), 1 << 30}
	var table disk.Table
	if pi {
		table.DiskID = 7
	} else {
		table.GUID = disk.GUID{7}
	}
	at := int64(disk.Align)
	for i, n := range []int64{150, 4, 4, 4} {
		p := disk.Partition{Start: at, Sectors: n * mib / disk.SectorBytes}
		if pi {
			p.MBRType = disk.MBRLinux
		} else {
			p.Type, p.ID = disk.TypeLinux, disk.GUID{byte(i + 1)}
		}
		table.Partitions = append(table.Partitions, p)
		at += p.Sectors
	}
	if err := table.Write(m, diskSize); err != nil {
		t.Fatal(err)
	}
	tree := []fat.File{{Name: "config.txt", Data: slot.ConfigTxt("a")}, {Name: "tryboot.txt", Data: slot.ConfigTxt("b")}}
	if !pi {
		tree = []fat.File{{Name: "loader", Dir: []fat.File{{Name: "entries", Room: slot.EntriesRoom, Dir: slot.Entries("a", 0, map[string]string{"a": "cmdline a"})}}}}
	}
	tree = append(tree,
		fat.File{Name: "a", Room: slot.Room, Dir: []fat.File{{Name: "vmlinuz", Data: []byte("kernel a")}, {Name: "cmdline.txt", Data: []byte("cmdline a\n")}}},
		fat.File{Name: "b", Room: slot.Room, Dir: []fat.File{}})
	if err := fat.Format(io.NewOffsetWriter(m, disk.Align*disk.SectorBytes), 150*mib, "EDGED", 1, tree); err != nil {
		t.Fatal(err)
	}
	return m
}

func upgrade(t *testing.T, k ed25519.PrivateKey, board string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := slot.Sign(&out, k, slot.Manifest{Board: board, Version: "v2", Cmdline: "quiet"}, []fat.File{{Name: "vmlinuz", Data: []byte("kernel b")}}, bytes.Repeat([]byte("root"), 300000)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func apply(m *memory, data []byte) error {
	_, err := slot.Apply(bytes.NewReader(data), []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}, slot.Target{Disk: m, SizeBytes: diskSize, Running: "a", Board: "x"})
	return err
}

func TestUpgradeTryKeep(t *testing.T) {
	for name, pi := range map[string]bool{"pi": true, "amd64": false} {
		m := newDisk(t, pi)
		if err := apply(m, upgrade(t, key(1), "x")); err != nil {
			t.Fatal(err)
		}
		boot, v, err := slot.Boot(m, diskSize)
		if err != nil {
			t.Fatal(err)
		}
		data, err := v.ReadFile("b/vmlinuz")
		if err != nil || string(data) != "kernel b" {
			t.Errorf("%s: b/vmlinuz: %q, %v", name, data, err)
		}
		cmdline, err := v.ReadFile("b/cmdline.txt")
		if err != nil || !strings.HasPrefix(string(cmdline), "quiet root=PARTUUID=") || !strings.Contains(string(cmdline), " edged.slot=b") {
			t.Errorf("%s: b/cmdline.txt: %q, %v", name, cmdline, err)
		}
		if !bytes.Equal(m.data[155*mib:155*mib+8], []byte("rootroot")) {
			t.Errorf("%s: the root is not in the second partition", name)
		}
		argument, err := slot.Try(boot, v, "b")
		if err != nil || (argument == "0 tryboot") != pi {
			t.Fatalf("%s: try: %q, %v", name, argument, err)
		}
		// On a Pi the old slot is still the kept one; systemd-boot counts.
		for s, want := range map[string]bool{"a": false, "b": true} {
			if got, err := slot.IsTrial(v, s); err != nil || got != want {
				t.Errorf("%s: slot %s on trial: %v, %v", name, s, got, err)
			}
		}
		if !pi {
			if names, err := v.List("loader/entries"); err != nil || !slices.Equal(names, []string{"edged-b+3.conf", "edged-a.conf"}) {
				t.Errorf("entries %q, %v", names, err)
			}
		}
		if err := slot.Commit(boot, v, "b"); err != nil {
			t.Fatal(err)
		}
		if got, err := slot.IsTrial(v, "b"); err != nil || got {
			t.Errorf("%s: slot b is still on trial: %v, %v", name, got, err)
		}
	}
}

func TestUpgradeRefused(t *testing.T) {
	good := upgrade(t, key(1), "x")
	kernel, root := bytes.Clone(good), bytes.Clone(good)
	kernel[bytes.Index(kernel, []byte("kernel b"))] ^= 1
	root[bytes.LastIndex(root, []byte("root"))] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"another key":   {upgrade(t, key(2), "x"), slot.ErrSignature},
		"another board": {upgrade(t, key(1), "y"), nil},
		"kernel":        {kernel, nil},
		"root":          {root, nil},
		"cut off":       {good[:len(good)-500000], nil},
		"no upgrade":    {[]byte("nothing"), nil},
	} {
		m := newDisk(t, true)
		err := apply(m, c.data)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		_, v, err := slot.Boot(m, diskSize)
		if err != nil {
			t.Fatal(err)
		}
		if names, err := v.List("b"); err != nil || len(names) != 0 {
			t.Errorf("%s: slot b holds %q, %v", name, names, err)
		}
	}
}

// TestKeepCutShort cuts the power at every write of keeping a slot: afterwards
// one of the two is kept, never none.
func TestKeepCutShort(t *testing.T) {
	for name, pi := range map[string]bool{"pi": true, "amd64": false} {
		for cut := 0; ; cut++ {
			m := newDisk(t, pi)
			if err := apply(m, upgrade(t, key(1), "x")); err != nil {
				t.Fatal(err)
			}
			boot, v, err := slot.Boot(m, diskSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := slot.Try(boot, v, "b"); err != nil {
				t.Fatal(err)
			}
			m.left = cut
			err = slot.Commit(boot, v, "b")
			if err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			for s, kernel := range map[string]string{"a": "kernel a", "b": "kernel b"} {
				if data, err := v.ReadFile(s + "/vmlinuz"); err != nil || string(data) != kernel {
					t.Fatalf("%s, cut after %d writes: %s/vmlinuz: %q, %v", name, cut, s, data, err)
				}
			}
			a, errA := slot.IsTrial(v, "a")
			if errA != nil {
				t.Fatal(errA)
			}
			b, errB := slot.IsTrial(v, "b")
			if errB != nil {
				t.Fatal(errB)
			}
			if a && b {
				t.Fatalf("%s, cut after %d writes: no slot is kept", name, cut)
			}
			if !pi {
				for _, s := range []string{"a", "b"} {
					entry := "loader/entries/edged-" + s
					text, err := v.ReadFile(entry + ".conf")
					if errors.Is(err, fat.ErrNotExist) {
						text, err = v.ReadFile(entry + "+3.conf")
					}
					if err != nil || !strings.Contains(string(text), "linux /"+s+"/vmlinuz\n") {
						t.Fatalf("cut after %d writes: the entry of %s: %q, %v", cut, s, text, err)
					}
				}
			}
			if err == nil {
				break
			}
		}
	}
}
