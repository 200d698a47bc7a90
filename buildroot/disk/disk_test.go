package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// memory is a disk in memory; it fails after some writes if told.
type memory struct {
	data []byte
	left int
}

var errCut = errors.New("cut")

func newMemory(size int) *memory { return &memory{make([]byte, size), 1 << 30} }

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

const size = 64 << 20

func tables() map[string]Table {
	return map[string]Table{
		"mbr": {DiskID: 0xED6ED001, Partitions: []Partition{
			{Start: 2048, Sectors: 4096, MBRType: MBRFAT32}, {Start: 8192, Sectors: 2048, MBRType: MBRLinux}, {Start: 10240, Sectors: 2048, MBRType: MBRLinux},
		}},
		"gpt": {GUID: GUID{1, 2, 3, 4, 5}, Partitions: []Partition{
			{Start: 2048, Sectors: 4096, Type: TypeESP, ID: GUID{6}, Name: "boot"}, {Start: 8192, Sectors: 2048, Type: TypeLinux, ID: GUID{7}, Name: "data"},
		}},
	}
}

func TestReadsBackWhatItWrote(t *testing.T) {
	for name, table := range tables() {
		m := newMemory(size)
		if err := table.Write(m, size); err != nil {
			t.Fatal(err)
		}
		have, err := Read(m, size)
		if err != nil || !reflect.DeepEqual(have, table) {
			t.Errorf("%s: %+v, %v; want %+v", name, have, err, table)
		}
	}
}

// TestOthersAgree has sfdisk read and verify the tables.
func TestOthersAgree(t *testing.T) {
	if _, err := exec.LookPath("sfdisk"); err != nil {
		t.Skip("sfdisk is not here")
	}
	for name, table := range tables() {
		m := newMemory(size)
		if err := table.Write(m, size); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, m.data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sfdisk", "--verify", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No errors detected") {
			t.Errorf("%s: sfdisk --verify: %v\n%s", name, err, out)
		}
		out, err = exec.Command("sfdisk", "--dump", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "start=        8192, size=        2048") {
			t.Errorf("%s: sfdisk --dump: %v\n%s", name, err, out)
		}
	}
}

// TestGrowCutShort moves each table to a larger disk and cuts the power after
// every write: the table is the old or the new one, and growing again ends.
func TestGrowCutShort(t *testing.T) {
	const larger = 4 * size
	for name, table := range tables() {
		for cut := 0; ; cut++ {
			m := newMemory(size)
			if err := table.Write(m, size); err != nil {
				t.Fatal(err)
			}
			m.data, m.left = append(m.data, make([]byte, larger-size)...), cut
			_, _, err := Grow(m, larger)
			if err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			m.left = 1 << 30
			have, readErr := Read(m, larger)
			if readErr != nil {
				t.Fatalf("%s, cut after %d writes: %v", name, cut, readErr)
			}
			if !reflect.DeepEqual(have.Partitions[0], table.Partitions[0]) {
				t.Fatalf("%s, cut after %d writes: the first partition changed", name, cut)
			}
			if err == nil {
				last := have.Partitions[len(have.Partitions)-1]
				if end := (last.Start + last.Sectors) * SectorBytes; end < larger-2<<20 {
					t.Errorf("%s: the last partition ends at %d of %d", name, end, larger)
				}
				before := bytes.Clone(m.data)
				if _, grown, err := Grow(m, larger); err != nil || grown || !bytes.Equal(before, m.data) {
					t.Errorf("%s: growing again: %v, %v", name, grown, err)
				}
				break
			}
			if _, _, err := Grow(m, larger); err != nil {
				t.Fatalf("%s, again after %d writes: %v", name, cut, err)
			}
		}
	}
}

func TestSecondGPT(t *testing.T) {
	m := newMemory(size)
	table := tables()["gpt"]
	if err := table.Write(m, size); err != nil {
		t.Fatal(err)
	}
	m.data[SectorBytes+60] ^= 1
	if have, err := Read(m, size); err != nil || !reflect.DeepEqual(have, table) {
		t.Errorf("with the first copy damaged: %+v, %v", have, err)
	}
}

func TestRefuses(t *testing.T) {
	m := newMemory(size)
	if _, err := Read(m, size); !errors.Is(err, ErrNoTable) {
		t.Errorf("an empty disk: %v", err)
	}
	for name, p := range map[string][]Partition{
		"overlap": {{Start: 2048, Sectors: 100}, {Start: 2100, Sectors: 10}},
		"behind":  {{Start: 2048, Sectors: size}},
		"early":   {{Start: 1, Sectors: 10}},
	} {
		if err := (Table{Partitions: p}).Write(m, size); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, table := range tables() {
		m := newMemory(size)
		if err := table.Write(m, size); err != nil {
			f.Fatal(err)
		}
		f.Add(m.data[:34*SectorBytes])
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		m := newMemory(1 << 20)
		copy(m.data, head)
		table, err := Read(m, 1<<20)
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if p.Start <= 0 || (p.Start+p.Sectors)*SectorBytes > 1<<20 {
				t.Errorf("partition %+v is not on the disk", p)
			}
		}
	})
}
