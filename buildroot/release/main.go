// Command release writes what a release carries beside the binaries: for every
// architecture an SBOM, a Debian package and an offline bundle, then the
// checksums of everything in the folder.
//
//	release -dist dist -version v1 -payload runtime/engine/payload/files [-image app.tar] [-manifest app.yaml] amd64 arm64
//
// Promise: the same inputs give the same bytes. Times are SOURCE_DATE_EPOCH,
// owners are root, entries are sorted. A binary that is not static, or is for
// another architecture than its name says, is refused.
//
// Dangers: gzip's bytes depend on the Go release that built this program.
//
// Sources: deb(5), deb-control(5); CycloneDX 1.5 JSON; package URL's golang
// type.
package main

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// arch is an architecture that edged is built for.
type arch struct {
	name, debian string
	machine      elf.Machine
}

var arches = []arch{
	{"amd64", "amd64", elf.EM_X86_64},
	{"arm64", "arm64", elf.EM_AARCH64},
	{"armv7", "armhf", elf.EM_ARM},
	{"armv6", "armel", elf.EM_ARM},
}

// release is what the artefacts are made from.
type release struct {
	dist, payload, version string
	time                   time.Time
	images, manifests      []string // for the bundles
}

func main() {
	var r release
	flag.StringVar(&r.dist, "dist", "dist", "`folder` with edged-linux-<arch>")
	flag.StringVar(&r.payload, "payload", "", "`folder` with <arch>/*.zst, the programs inside")
	flag.StringVar(&r.version, "version", "", "version of the release")
	several := func(into *[]string) func(string) error {
		return func(v string) error {
			*into = append(*into, v)
			return nil
		}
	}
	flag.Func("image", "`archive` of container images for the bundles; may be repeated", several(&r.images))
	flag.Func("manifest", "`file` of manifests for the bundles; may be repeated", several(&r.manifests))
	flag.Parse()
	if r.version == "" || r.payload == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, "release: SOURCE_DATE_EPOCH is not set to a time")
		os.Exit(2)
	}
	r.time = time.Unix(epoch, 0).UTC()
	if err := r.write(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func (r release) write(names []string) error {
	for _, name := range names {
		i := slices.IndexFunc(arches, func(a arch) bool { return a.name == name })
		if i < 0 {
			return fmt.Errorf("unknown architecture %q", name)
		}
		if err := r.writeArch(arches[i]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return r.checksums()
}

func (r release) writeArch(a arch) error {
	binary := filepath.Join(r.dist, "edged-linux-"+a.name)
	if err := checkStatic(binary, a.machine); err != nil {
		return err
	}
	bom, err := r.sbom(a, binary)
	if err != nil {
		return fmt.Errorf("make the SBOM: %w", err)
	}
	if err := os.WriteFile(binary+".cdx.json", bom, 0o644); err != nil {
		return err
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	deb, err := r.deb(a, data, bom)
	if err != nil {
		return fmt.Errorf("make the Debian package: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.dist, "edged_"+r.debVersion()+"_"+a.debian+".deb"), deb, 0o644); err != nil {
		return err
	}
	bundle, err := r.bundle(a, data, bom)
	if err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	return os.WriteFile(filepath.Join(r.dist, r.bundleName(a)+".tar.gz"), bundle, 0o644)
}

// checkStatic refuses a file that would ask the device for a loader or a
// library.
func checkStatic(path string, machine elf.Machine) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Machine != machine {
		return fmt.Errorf("%s is for %v, want %v", path, f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("%s is not static: it has a %v segment", path, p.Type)
		}
	}
	return nil
}

// checksums writes SHA256SUMS, as sha256sum -c reads it.
func (r release) checksums() error {
	entries, err := os.ReadDir(r.dist)
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, e := range entries {
		if e.IsDir() || e.Name() == "SHA256SUMS" {
			continue
		}
		f, err := os.Open(filepath.Join(r.dist, e.Name()))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s  %s\n", hex.EncodeToString(h.Sum(nil)), e.Name())
	}
	return os.WriteFile(filepath.Join(r.dist, "SHA256SUMS"), []byte(out.String()), 0o644)
}
