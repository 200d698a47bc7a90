package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

//go:embed files/edged.service
var systemdUnit string

//go:embed files/edged.openrc
var openrcScript string

//go:embed files/install.sh
var installScript string

// file is an entry of an archive; its folders are made from its path.
type file struct {
	path string
	mode int64
	data []byte
}

// tarGz packs files, in their order, as root's and of one time.
func tarGz(files []file, prefix string, t time.Time) ([]byte, error) {
	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	made := map[string]bool{}
	var mkdir func(string) error
	mkdir = func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		name := prefix
		if dir != "." {
			if err := mkdir(path.Dir(dir)); err != nil {
				return err
			}
			name += dir + "/"
		}
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Uname: "root", Gname: "root", ModTime: t, Format: tar.FormatUSTAR})
	}
	for _, f := range files {
		if err := mkdir(path.Dir(f.path)); err != nil {
			return nil, err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: prefix + f.path, Mode: f.mode, Size: int64(len(f.data)), Uname: "root", Gname: "root", ModTime: t, Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func at(bin, text string) []byte { return []byte(strings.ReplaceAll(text, "@BIN@", bin)) }

func (r release) bundleName(a arch) string {
	return "edged-" + r.version + "-linux-" + a.name + "-offline"
}

// bundle is a folder with everything that a device without a network needs,
// and install.sh.
func (r release) bundle(a arch, binary, bom []byte) ([]byte, error) {
	files := []file{
		{"edged", 0o755, binary},
		{"edged.cdx.json", 0o644, bom},
		{"edged.openrc", 0o755, []byte(openrcScript)},
		{"edged.service", 0o644, []byte(systemdUnit)},
		{"install.sh", 0o755, []byte(installScript)},
	}
	for _, more := range []struct {
		folder string
		paths  []string
	}{{"images", r.images}, {"manifests", r.manifests}} {
		for _, path := range more.paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			files = append(files, file{more.folder + "/" + filepath.Base(path), 0o644, data})
		}
	}
	return tarGz(files, r.bundleName(a)+"/", r.time)
}

var (
	notDebian  = regexp.MustCompile(`[^A-Za-z0-9.+~]+`)
	isReleased = regexp.MustCompile(`^[0-9]+\.[0-9]`) // a commit's name may begin with a digit, too
)

// debVersion is the version as dpkg wants it: it begins with a digit, and a
// commit without a tag sorts before every release.
func (r release) debVersion() string {
	v := notDebian.ReplaceAllString(strings.TrimPrefix(r.version, "v"), ".")
	if !isReleased.MatchString(v) {
		v = "0~" + v
	}
	return v
}

// copyright is Debian's name for the licence, which its base system carries; those
// of what is linked are in the SBOM.
const copyright = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: The edged authors
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
`

const postinst = `#!/bin/sh
set -e
[ "$1" = configure ] && [ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if [ -z "$2" ]; then systemctl enable edged && systemctl start --no-block edged; else systemctl try-restart --no-block edged; fi
`

const prerm = `#!/bin/sh
set -e
[ "$1" = remove ] && [ -d /run/systemd/system ] || exit 0
systemctl disable --now edged
echo "edged: containers go on and data stays in /var/lib/edged; 'edged reset' before removing takes both away"
`

// deb is a Debian package (deb(5)): an ar archive of a version, control files
// and files.
func (r release) deb(a arch, binary, bom []byte) ([]byte, error) {
	files := []file{
		{"usr/bin/edged", 0o755, binary},
		{"lib/systemd/system/edged.service", 0o644, at("/usr/bin/edged", systemdUnit)},
		{"usr/share/doc/edged/copyright", 0o644, []byte(copyright)},
		{"usr/share/doc/edged/edged.cdx.json", 0o644, bom},
		{"usr/share/doc/edged/edged.openrc", 0o644, at("/usr/bin/edged", openrcScript)},
	}
	size := 0
	for _, f := range files {
		size += (len(f.data) + 1023) / 1024
	}
	control := fmt.Sprintf(`Package: edged
Version: %s
Architecture: %s
Maintainer: The edged authors <edged@localhost>
Installed-Size: %d
Section: admin
Priority: optional
Description: Kubernetes master and worker in one static daemon
 For devices with little memory and flash that wears out. Needs a Linux kernel
 of 5.3 or later and nothing else on the device.
`, r.debVersion(), a.debian, size)
	controlTar, err := tarGz([]file{
		{"control", 0o644, []byte(control)},
		{"postinst", 0o755, []byte(postinst)},
		{"prerm", 0o755, []byte(prerm)},
	}, "./", r.time)
	if err != nil {
		return nil, err
	}
	dataTar, err := tarGz(files, "./", r.time)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	for _, m := range []file{{"debian-binary", 0, []byte("2.0\n")}, {"control.tar.gz", 0, controlTar}, {"data.tar.gz", 0, dataTar}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.path, r.time.Unix(), 0, 0, "100644", len(m.data))
		out.Write(m.data)
		if len(m.data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes(), nil
}
