package harness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiskCountsAndFills(t *testing.T) {
	d := NewOnDisk(t, NewSwitch(t), 1, 16)
	before := d.BytesWritten()
	const size = 1 << 20
	if err := os.WriteFile(filepath.Join(d.DataDir(), "file"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := d.BytesWritten() - before; n < size || n > 2*size {
		t.Errorf("%d bytes counted for a file of %d", n, size)
	}
	if idle := d.BytesWritten(); d.BytesWritten() != idle {
		t.Error("counting writes")
	}
	if out, err := d.Run("sh", "-c", "head -c 100000000 /dev/zero > "+d.DataDir()+"/big"); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("filling: %q %v", out, err)
	}
}
