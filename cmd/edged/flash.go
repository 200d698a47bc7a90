package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
)

// runFlash writes an image to a card and puts a configuration on it.
func runFlash(ctx context.Context, e env) error {
	fs := pflag.NewFlagSet("flash", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	image := fs.String("image", "", "`file` of the image: .img, or packed as .img.xz, .img.zst or .img.gz")
	device := fs.String("device", "", "card or disk to overwrite, such as /dev/sdb; or a `file`")
	config := fs.String("config", "", "edged.yaml to put on it")
	if err := fs.Parse(e.args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			_, err := fmt.Fprintf(e.stdout, "Usage: edged flash --image X --device D [--config C]\n\n%s", fs.FlagUsages())
			return err
		}
		return misusef("%w; `edged flash --help` lists the flags", err)
	}
	if *image == "" || *device == "" || fs.NArg() > 0 {
		return misusef("want --image and --device")
	}
	var text []byte
	if *config != "" {
		var err error
		if text, err = os.ReadFile(*config); err != nil {
			return misusef("--config: %w", err)
		}
		if err := checkCard(text); err != nil {
			return misusef("--config: %w", err)
		}
		if text, err = pid1.PadConfig(text); err != nil {
			return misusef("--config: %w", err)
		}
	}
	if err := checkTarget(*device, "/proc/self/mounts", "/proc/swaps"); err != nil {
		return err
	}
	return flash(ctx, e.stdout, *image, *device, text)
}

// checkTarget refuses a disk that is in use, by itself or by a partition.
func checkTarget(device, mounts, swaps string) error {
	fi, err := os.Stat(device)
	if errors.Is(err, os.ErrNotExist) && !strings.HasPrefix(device, "/dev/") {
		return nil // a file to be made
	}
	if err != nil {
		return misusef("--device: %w", err)
	}
	if fi.Mode().IsRegular() {
		return nil
	}
	if fi.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return misusef("--device: %s is neither a disk nor a file", device)
	}
	real, err := filepath.EvalSymlinks(device)
	if err != nil {
		return err
	}
	name := filepath.Base(real)
	if _, err := os.Stat(filepath.Join("/sys/class/block", name, "partition")); err == nil {
		return misusef("--device: %s is a partition; name the whole disk", device)
	}
	for _, table := range []string{mounts, swaps} {
		data, err := os.ReadFile(table)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(data), "\n") {
			used, rest, _ := strings.Cut(line, " ")
			if used == real || isPartitionOf(used, real) {
				return fmt.Errorf("%s is in use (%s on %s): unmount it first; a system's own disk is never written", device, used, strings.Fields(rest + " ?")[0])
			}
		}
	}
	// The root may be mounted under a name that is no path.
	var root, dev unix.Stat_t
	if err := errors.Join(unix.Stat("/", &root), unix.Stat(real, &dev)); err != nil {
		return err
	}
	if own, _, err := pid1.RootDisk(); err == nil && own == real || root.Dev == dev.Rdev {
		return fmt.Errorf("%s is the disk that this system runs from", device)
	}
	return nil
}

// openTarget opens what is overwritten. The kernel gives a disk to itself alone
// (O_EXCL) only if nobody holds it or a part of it: what is mounted under another name
// or for others, LVM, RAID and encryption are in no table that [checkTarget] reads.
func openTarget(device string) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE
	if fi, err := os.Stat(device); err == nil && fi.Mode()&os.ModeDevice != 0 {
		flags = os.O_RDWR | os.O_EXCL
	}
	f, err := os.OpenFile(device, flags, 0o600) // the card holds the cluster's secret
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s is in use by the system: a file system, LVM, RAID or encryption on it; end that first", device)
	}
	return f, err
}

// isPartitionOf: /dev/sdb1 is one of /dev/sdb, /dev/mmcblk0p1 of /dev/mmcblk0.
func isPartitionOf(path, disk string) bool {
	rest, ok := strings.CutPrefix(path, disk)
	if !ok || rest == "" {
		return false
	}
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		if rest, ok = strings.CutPrefix(rest, "p"); !ok {
			return false
		}
	}
	return rest != "" && strings.Trim(rest, "0123456789") == ""
}

// openImage opens an image and unpacks it if its name says so.
func openImage(ctx context.Context, path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(path) {
	case ".gz":
		return gzip.NewReader(f)
	case ".zst":
		d, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case ".xz":
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin = f
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w: unpack it yourself, or use an image packed as .zst", path, err)
		}
		return xzReader{out, cmd, &stderr}, nil
	}
	return f, nil
}

// xzReader ends with xz's own error, if it had one.
type xzReader struct {
	io.ReadCloser
	cmd    *exec.Cmd
	stderr *bytes.Buffer
}

func (x xzReader) Close() error {
	if err := x.ReadCloser.Close(); err != nil { // stops an xz that is not done
		return err
	}
	if err := x.cmd.Wait(); err != nil {
		return fmt.Errorf("xz: %w: %s", err, bytes.TrimSpace(x.stderr.Bytes()))
	}
	return nil
}

// head is the beginning of a stream, kept as far as it was asked for.
type head struct {
	from io.Reader
	kept []byte
}

// headMax bounds what is kept: the tables of a boot partition and its folder are in its
// first few megabytes.
const headMax = 32 << 20

func (h *head) ReadAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if off < 0 || end > headMax {
		return 0, fmt.Errorf("byte %d is not within its first %d MB", off, headMax>>20)
	}
	if have := len(h.kept); end > int64(have) {
		h.kept = slices.Grow(h.kept, int(end)-have)[:end]
		n, err := io.ReadFull(h.from, h.kept[have:])
		h.kept = h.kept[:have+n]
		if err != nil {
			return 0, err
		}
	}
	return copy(p, h.kept[off:]), nil
}

// isImage tells an image of edged by its boot partition's edged.yaml, and how many bytes
// its partitions reach to. No more of it need be there than its beginning.
func isImage(r io.ReaderAt) (need int64, err error) {
	table, err := disk.Read(r, math.MaxInt64)
	if err != nil {
		return 0, err
	}
	if len(table.Partitions) == 0 {
		return 0, disk.ErrNoTable
	}
	for _, p := range table.Partitions {
		need = max(need, (p.Start+p.Sectors)*disk.SectorBytes)
	}
	v, err := fat.Open(io.NewSectionReader(r, table.Partitions[0].Start*disk.SectorBytes, math.MaxInt64))
	if err != nil {
		return 0, err
	}
	_, err = v.Extents(pid1.ConfigName)
	return need, err
}

// checkRoom refuses a disk on which an image does not fit; a file grows.
func checkRoom(d *os.File, need int64) error {
	fi, err := d.Stat()
	if err != nil || fi.Mode().IsRegular() {
		return err
	}
	size, err := d.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = d.Seek(0, io.SeekStart)
	}
	if err == nil && size < need {
		err = fmt.Errorf("%s has %d MB and the image takes %d: use a larger card", d.Name(), size>>20, need>>20)
	}
	return err
}

// flash writes, puts the configuration in place, and reads everything back. What is no
// image of edged, or does not fit, is refused before the card is touched.
func flash(ctx context.Context, out io.Writer, image, device string, config []byte) (err error) {
	in, err := openImage(ctx, image)
	if err != nil {
		return err
	}
	h := &head{from: in}
	need, err := isImage(h)
	if err != nil {
		if cause := in.Close(); cause != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			err = cause // why it could not be unpacked
		}
		return fmt.Errorf("%s is not an image of edged: %w", image, err)
	}
	d, err := openTarget(device)
	if err != nil {
		_ = in.Close() // it complains that it was not read to its end
		return err
	}
	defer d.Close()
	if err := checkRoom(d, need); err != nil {
		_ = in.Close()
		return err
	}
	written := sha256.New()
	size, err := copyProgress(ctx, io.MultiWriter(d, written), io.MultiReader(bytes.NewReader(h.kept), in), func(n int64) { fmt.Fprintf(out, "written %d MB\n", n>>20) })
	if err := errors.Join(err, in.Close(), d.Sync()); err != nil {
		return fmt.Errorf("write %s: %w", device, err)
	}
	// What is read back must come from the card, not from memory.
	if err := unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	back := sha256.New()
	if _, err := copyProgress(ctx, back, io.NewSectionReader(d, 0, size), func(n int64) { fmt.Fprintf(out, "verified %d of %d MB\n", n>>20, size>>20) }); err != nil {
		return fmt.Errorf("read %s back: %w", device, err)
	}
	if !bytes.Equal(written.Sum(nil), back.Sum(nil)) {
		return fmt.Errorf("%s does not hold what was written to it: the card is worn out or not what it says", device)
	}
	boot, v, err := slot.Boot(d, size)
	if err != nil {
		return fmt.Errorf("open the boot partition of %s: %w", device, err)
	}
	if config != nil {
		if err := errors.Join(v.Overwrite(boot, pid1.ConfigName, config), boot.Sync()); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "%s is ready: %d MB written and verified\n", device, size>>20)
	return err
}

// copyProgress copies and tells every 64 MB.
func copyProgress(ctx context.Context, to io.Writer, from io.Reader, tell func(int64)) (done int64, err error) {
	const every = 64 << 20
	buf := make([]byte, 4<<20)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return done, err
			}
			if before := done; (before+int64(n))/every > before/every {
				tell(before + int64(n))
			}
			done += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
		if err := ctx.Err(); err != nil {
			return done, err
		}
	}
}
