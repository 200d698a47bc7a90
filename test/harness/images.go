package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"edged/internal/ociimage"
)

// Busybox is the name of the image with Debian's static busybox and all its
// applets (a shell, nc, httpd), and with fetch, an HTTP client that resolves
// names.
const Busybox = "edged.example/busybox:1"

// ImportBusybox makes the busybox image and imports it on the device.
func (d *Device) ImportBusybox() {
	d.tb.Helper()
	archive, err := busyboxArchive(d.Dir)
	if err != nil {
		d.tb.Fatalf("make the busybox image: %v", err)
	}
	if out, err := d.Edged("image", "import", "--run-dir", d.RunDir(), archive); err != nil {
		d.tb.Fatalf("%s: import busybox: %v\n%s\n%s", d.Name, err, out, d.LogTail())
	}
}

// BusyboxArchive makes the busybox image in the device's folder, for the caller to
// import.
func (d *Device) BusyboxArchive() (string, error) { return busyboxArchive(d.Dir) }

func busyboxArchive(dir string) (string, error) {
	root := filepath.Join(dir, "busybox-root")
	for _, sub := range []string{"bin", "sbin", "usr/bin", "usr/sbin", "etc", "tmp", "proc", "sys", "dev", "var/www"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return "", err
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		return "", err
	}
	applets, err := exec.Command("/bin/busybox", "--list-full").Output()
	if err != nil {
		return "", err
	}
	for _, a := range strings.Fields(string(applets)) {
		if a == "bin/busybox" {
			continue
		}
		if err := os.Symlink("/bin/busybox", filepath.Join(root, a)); err != nil && !os.IsExist(err) {
			return "", err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(root, "bin/fetch"), "edged/test/fetch")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fetch: %w: %s", err, out)
	}
	f, err := os.Create(filepath.Join(dir, "busybox.tar"))
	if err != nil {
		return "", err
	}
	spec := ociimage.Spec{
		Arch:   goruntime.GOARCH,
		Layers: map[string]string{"root": "busybox-root"},
		Images: []ociimage.Image{{Names: []string{Busybox}, Layers: []string{"root"}, Config: ociimage.Config{
			Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"sh"},
		}}},
	}
	if err := ociimage.Write(f, dir, spec); err != nil {
		f.Close()
		return "", err
	}
	return f.Name(), f.Close()
}
