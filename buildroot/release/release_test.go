package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func testRelease(t *testing.T) release {
	t.Setenv("LIBSECCOMP_VERSION", "2.5.4-1")
	return release{dist: t.TempDir(), payload: t.TempDir(), version: "v1.2.3-4-gabcdef", time: time.Unix(1700000000, 0).UTC()}
}

func TestDebVersion(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "v1.2.3-4-gabcdef-dirty": "1.2.3.4.gabcdef.dirty", "abcdef1": "0~abcdef1", "4bcdef1": "0~4bcdef1", "4bcdef1-dirty": "0~4bcdef1.dirty",
	} {
		if got := (release{version: in}).debVersion(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestDeb lets dpkg-deb read the package.
func TestDeb(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not here")
	}
	r := testRelease(t)
	var debs [2][]byte
	for i := range debs {
		var err error
		if debs[i], err = r.deb(arches[1], []byte("the binary"), []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(debs[0], debs[1]) {
		t.Error("two packages of the same inputs differ")
	}
	path := filepath.Join(t.TempDir(), "edged.deb")
	if err := os.WriteFile(path, debs[0], 0o644); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{"Version": "1.2.3.4.gabcdef", "Architecture": "arm64", "Package": "edged"} {
		out, err := exec.Command("dpkg-deb", "-f", path, field).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %s, %v; want %s", field, out, err, want)
		}
	}
	root := t.TempDir()
	if out, err := exec.Command("dpkg-deb", "-x", path, root).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb -x: %v\n%s", err, out)
	}
	if data, err := os.ReadFile(filepath.Join(root, "usr/bin/edged")); err != nil || string(data) != "the binary" {
		t.Errorf("usr/bin/edged: %q, %v", data, err)
	}
	unit, err := os.ReadFile(filepath.Join(root, "lib/systemd/system/edged.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/usr/bin/edged run\n") {
		t.Errorf("the unit: %s, %v", unit, err)
	}
}

// TestBundleInstalls runs the one command of the bundle below a folder with
// systemd and below one with OpenRC.
func TestBundleInstalls(t *testing.T) {
	r := testRelease(t)
	image := filepath.Join(t.TempDir(), "app.tar")
	if err := os.WriteFile(image, []byte("an image"), 0o644); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), "app.yaml")
	if err := os.WriteFile(manifest, []byte("a manifest"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.images, r.manifests = []string{image}, []string{manifest}
	data, err := r.bundle(arches[0], []byte("the binary"), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	untar(t, data, dir)
	for name, c := range map[string]struct {
		there      string // what tells the service manager
		path, want string
		mode       os.FileMode
	}{
		"systemd": {"lib/systemd/systemd", "etc/systemd/system/edged.service", "\nExecStart=/usr/local/bin/edged run\n", 0o644},
		"OpenRC":  {"sbin/openrc-run", "etc/init.d/edged", "\ncommand=\"/usr/local/bin/edged\"\n", 0o755},
	} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(c.there)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, c.there), nil, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", filepath.Join(dir, r.bundleName(arches[0]), "install.sh"))
		cmd.Env = append(os.Environ(), "ROOT="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: install.sh: %v\n%s", name, err, out)
		}
		for _, f := range []struct {
			path, want string
			mode       os.FileMode
		}{
			{"usr/local/bin/edged", "the binary", 0o755},
			{"var/lib/edged/images/app.tar", "an image", 0o644},
			{"var/lib/edged/manifests/app.yaml", "a manifest", 0o644},
			{c.path, c.want, c.mode},
		} {
			path := filepath.Join(root, f.path)
			if have, err := os.ReadFile(path); err != nil || !strings.Contains(string(have), f.want) {
				t.Errorf("%s: %s: %q, %v; want %q", name, f.path, have, err, f.want)
			} else if fi, err := os.Stat(path); err != nil || fi.Mode() != f.mode {
				t.Errorf("%s: %s has mode %v, %v; want %v", name, f.path, fi.Mode(), err, f.mode)
			}
		}
		if fi, err := os.Stat(filepath.Join(root, "var/lib/edged")); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: the folder of data has mode %v, %v", name, fi.Mode(), err)
		}
	}
}

func untar(t *testing.T, data []byte, dir string) {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var content []byte
			if content, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(path, content, os.FileMode(h.Mode))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSBOM takes this test's own binary for edged and for runc.
func TestSBOM(t *testing.T) {
	r := testRelease(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(r.payload, "amd64"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.payload, "amd64", "runc-0123.zst"), enc.EncodeAll(data, nil), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := r.sbom(arches[0], self)
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(out, &b); err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{b.Metadata.Component.Ref: true}
	var compress bool
	for _, c := range b.Components {
		if refs[c.Ref] {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref] = true
		compress = compress || c.Name == "github.com/klauspost/compress" && c.Version != ""
	}
	if !compress {
		t.Error("klauspost/compress, which this test uses, is not listed")
	}
	for _, d := range b.Dependencies {
		for _, ref := range append(d.DependsOn, d.Ref) {
			if !refs[ref] {
				t.Errorf("%s depends on %s, which is not described", d.Ref, ref)
			}
		}
	}
	if !refs["carried/runc"] {
		t.Error("the carried runc is not listed")
	}
}

func TestRefusesWrongBinaries(t *testing.T) {
	dynamic, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(dynamic)
	if err != nil {
		t.Fatal(err)
	}
	machine := f.Machine
	f.Close()
	if err := checkStatic(dynamic, machine); err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("a dynamic program: %v", err)
	}
	if err := checkStatic(dynamic, elf.EM_ARM); err == nil || !strings.Contains(err.Error(), "EM_ARM") {
		t.Errorf("a program for another machine: %v", err)
	}
}
