package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// The parts of CycloneDX 1.5 that are written.
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Ref     string `json:"bom-ref"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// sbom lists what the Go linker recorded in the binary and in the programs
// that it carries: the modules that are in them, not those that were asked for.
func (r release) sbom(a arch, binary string) ([]byte, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	known := map[string]component{}
	root := component{
		Ref: "edged", Type: "application", Name: "edged", Version: r.version,
		PURL: "pkg:generic/edged@" + r.version + "?arch=" + a.name, Hashes: sha(data),
	}
	deps := []dependency{{"edged", modules(info, known)}}
	packed, err := filepath.Glob(filepath.Join(r.payload, a.name, "*.zst"))
	if err != nil {
		return nil, err
	}
	if len(packed) == 0 {
		return nil, fmt.Errorf("%s holds no programs: was the payload built?", filepath.Join(r.payload, a.name))
	}
	for _, path := range packed {
		d, err := carried(path, a, known)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		deps[0].DependsOn = append(deps[0].DependsOn, d.Ref)
		deps = append(deps, d)
	}
	b := bom{
		Format: "CycloneDX", Spec: "1.5", Version: 1, Serial: serial(root.Hashes[0].Content),
		Metadata: metadata{r.time.Format(time.RFC3339), root}, Dependencies: deps,
	}
	for _, c := range known {
		b.Components = append(b.Components, c)
	}
	slices.SortFunc(b.Components, func(x, y component) int { return strings.Compare(x.Ref, y.Ref) })
	out, err := json.MarshalIndent(b, "", " ")
	return append(out, '\n'), err
}

// carried describes a program of the payload.
func carried(path string, a arch, known map[string]component) (dependency, error) {
	packed, err := os.ReadFile(path)
	if err != nil {
		return dependency{}, err
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return dependency{}, err
	}
	defer dec.Close()
	data, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return dependency{}, err
	}
	name, _, _ := strings.Cut(filepath.Base(path), "-")
	c := component{Ref: "carried/" + name, Type: "application", Name: name, Hashes: sha(data)}
	d := dependency{Ref: c.Ref, DependsOn: []string{}}
	if info, err := buildinfo.Read(bytes.NewReader(data)); err == nil {
		c.Version = info.Main.Version
		for _, m := range info.Deps {
			if m.Path+"/"+name == info.Path || m.Path == info.Path {
				c.Version = m.Version
			}
		}
		d.DependsOn = modules(info, known)
		if slices.ContainsFunc(info.Deps, func(m *debug.Module) bool { return m.Path == "github.com/seccomp/libseccomp-golang" }) {
			lib, err := libseccomp(a)
			if err != nil {
				return d, err
			}
			known[lib.Ref] = lib
			d.DependsOn = append(d.DependsOn, lib.Ref)
		}
	}
	known[c.Ref] = c
	return d, nil
}

// modules adds a program's modules, the Go runtime among them, and returns
// their references.
func modules(info *debug.BuildInfo, known map[string]component) []string {
	std := component{Type: "library", Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go"), PURL: "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")}
	std.Ref = std.PURL
	known[std.Ref] = std
	refs := []string{std.Ref}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component{Type: "library", Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + m.Version}
		c.Ref = c.PURL
		known[c.Ref] = c
		refs = append(refs, c.Ref)
	}
	return refs
}

// libseccomp is the C library linked into runc: Debian's, the same source for
// every architecture.
func libseccomp(a arch) (component, error) {
	version := os.Getenv("LIBSECCOMP_VERSION")
	if version == "" {
		return component{}, fmt.Errorf("LIBSECCOMP_VERSION is not set: which libseccomp is linked into runc?")
	}
	c := component{Type: "library", Name: "libseccomp", Version: version, PURL: "pkg:deb/debian/libseccomp@" + version + "?arch=" + a.debian}
	c.Ref = c.PURL
	return c, nil
}

func sha(data []byte) []hash {
	sum := sha256.Sum256(data)
	return []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
}

// serial is a UUID (version 8, RFC 9562) made of the binary's hash.
func serial(sum string) string {
	return fmt.Sprintf("urn:uuid:%s-%s-8%s-a%s-%s", sum[:8], sum[8:12], sum[13:16], sum[17:20], sum[20:32])
}
