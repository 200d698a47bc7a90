package main

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// rootBlock is what the kernel reads of the root at least.
const rootBlock = "128K"

// root makes the squashfs of a slot.
func (b *build) root() ([]byte, error) {
	dir := filepath.Join(b.dir, "root")
	for _, d := range []string{"bin", "dev", "etc/edged", "etc/ssl/certs", "lib/modules", "proc", "run", "sbin", "sys", "tmp", "usr/share/edged", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	data, err := b.emptyData()
	if err != nil {
		return nil, fmt.Errorf("make an empty data partition: %w", err)
	}
	certs, err := b.certificates()
	if err != nil {
		return nil, err
	}
	fsck, err := first(filepath.Join(b.debian, "sbin/e2fsck.static"))
	if err != nil {
		return nil, err
	}
	public := b.key.Public().(ed25519.PublicKey)
	for _, f := range []struct {
		path string
		mode fs.FileMode
		data []byte
	}{
		{"usr/share/edged/data.img.gz", 0o644, data},
		{"usr/share/edged/board", 0o644, []byte(b.board.name + "\n")},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, certs},
		{"etc/edged/upgrade.pub", 0o644, []byte(hex.EncodeToString(public) + "\n")},
		{"etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n")},
		{"etc/os-release", 0o644, []byte("NAME=edged\nID=edged\nPRETTY_NAME=\"edged " + b.version + "\"\nVERSION=\"" + b.version + "\"\n")},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.path), f.data, f.mode); err != nil {
			return nil, err
		}
	}
	for to, from := range map[string]string{"bin/edged": b.edged, "sbin/init": b.init, "sbin/e2fsck": fsck} {
		if err := copyFile(filepath.Join(dir, to), from, 0o755); err != nil {
			return nil, err
		}
	}
	for link, to := range map[string]string{
		"etc/resolv.conf": "/run/resolv.conf", "etc/containerd": "/var/lib/edged/etc/containerd", "etc/mtab": "/proc/self/mounts",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			return nil, err
		}
	}
	if err := b.modules(b.board.rootModules, func(path string, data []byte) error {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o644)
	}); err != nil {
		return nil, err
	}
	out := filepath.Join(b.dir, "root.squashfs")
	epoch := strconv.FormatInt(b.time.Unix(), 10)
	// Not packed: the image is packed as a whole, tighter than block by block, and a
	// device reads what it needs of its program at the card's speed, without a
	// processor's work at every page that it has to read again.
	cmd := exec.Command("mksquashfs", dir, out, "-noappend", "-quiet", "-no-progress", "-all-root", "-no-xattrs", "-b", rootBlock,
		"-comp", "gzip", "-noI", "-noD", "-noF", "-noX", "-mkfs-time", epoch, "-all-time", epoch, "-processors", "2")
	cmd.Env = without(os.Environ(), "SOURCE_DATE_EPOCH") // it refuses both
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mksquashfs: %w: %s", err, text)
	}
	return os.ReadFile(out)
}

func without(env []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
}

// emptyData is an ext4 with room in its descriptors to grow to 2 TiB, packed.
// The device writes it and lets the kernel grow it, so it needs no mke2fs.
func (b *build) emptyData() ([]byte, error) {
	path := filepath.Join(b.dir, "data.img")
	cmd := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-J", "size=8", "-L", "edged-data", "-U", dataUUID,
		"-E", "hash_seed="+dataUUID+",resize=536870912,nodiscard,root_owner=0:0", path, "32M")
	cmd.Env = append(without(os.Environ(), "SOURCE_DATE_EPOCH"), "E2FSPROGS_FAKE_TIME="+strconv.FormatInt(b.time.Unix(), 10))
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mke2fs: %w: %s", err, text)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return gzipped(data)
}

func gzipped(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// certificates are Debian's certificate authorities, for registries.
func (b *build) certificates() ([]byte, error) {
	paths, err := filepath.Glob(filepath.Join(b.debian, "usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s holds no ca-certificates", b.debian)
	}
	var out []byte
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		out = append(append(out, bytes.TrimSpace(data)...), '\n')
	}
	return out, nil
}

func copyFile(to, from string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}

// first is the first file that a pattern matches.
func first(pattern string) (string, error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(paths) == 0 {
		return "", fmt.Errorf("%s is not there", pattern)
	}
	return paths[0], nil
}
