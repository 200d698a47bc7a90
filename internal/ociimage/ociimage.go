// Package ociimage writes container images as one OCI image-layout tar archive
// from plain folders, without a container engine and without privileges.
//
// It does not run, pull or unpack images; runtime/engine does.
//
// Promise: the same folders and [Spec] give the same bytes. Entries are sorted,
// times are zero, and every file belongs to root.
//
// May be imported by commands and tests that make images. Source of the format:
// OCI image-spec, image-layout.md.
package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config is the part of an image's configuration that a container starts with.
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
}

// Image is one image under one or more full names (registry/repository:tag).
// Layers are keys of [Spec.Layers], lowest first.
type Image struct {
	Names  []string `json:"names"`
	Layers []string `json:"layers"`
	Config Config   `json:"config"`
}

// Spec is the content of one archive. Layers maps a layer's name to the folder
// with its files, relative to the folder of the Spec's file.
type Spec struct {
	Arch   string            `json:"arch"`
	Layers map[string]string `json:"layers"`
	Images []Image           `json:"images"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

type layer struct {
	desc   descriptor
	diffID string
}

// archive collects blobs by digest.
type archive struct {
	blobs map[string][]byte
}

func (a *archive) add(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	d := "sha256:" + hex.EncodeToString(sum[:])
	a.blobs[d] = data
	return descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (a *archive) addJSON(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return a.add(mediaType, data), nil
}

// Write writes the archive of spec to w. Layer folders are looked up below dir.
func Write(w io.Writer, dir string, spec Spec) error {
	a := &archive{blobs: map[string][]byte{}}
	layers := map[string]layer{}
	var manifests []descriptor
	for _, im := range spec.Images {
		for _, name := range im.Layers {
			if _, ok := layers[name]; ok {
				continue
			}
			folder, ok := spec.Layers[name]
			if !ok {
				return fmt.Errorf("image %v: unknown layer %q", im.Names, name)
			}
			l, err := a.addLayer(filepath.Join(dir, folder))
			if err != nil {
				return fmt.Errorf("layer %s: %w", name, err)
			}
			layers[name] = l
		}
		m, err := a.addImage(spec.Arch, im, layers)
		if err != nil {
			return fmt.Errorf("image %v: %w", im.Names, err)
		}
		manifests = append(manifests, m...)
	}
	return a.write(w, manifests)
}

func (a *archive) addLayer(dir string) (layer, error) {
	var raw, packed bytes.Buffer
	if err := tarFolder(&raw, dir); err != nil {
		return layer{}, err
	}
	sum := sha256.Sum256(raw.Bytes())
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(raw.Bytes()); err != nil {
		return layer{}, err
	}
	if err := zw.Close(); err != nil {
		return layer{}, err
	}
	return layer{
		desc:   a.add("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes()),
		diffID: "sha256:" + hex.EncodeToString(sum[:]),
	}, nil
}

func (a *archive) addImage(arch string, im Image, layers map[string]layer) ([]descriptor, error) {
	var descs []descriptor
	var diffs []string
	for _, n := range im.Layers {
		descs = append(descs, layers[n].desc)
		diffs = append(diffs, layers[n].diffID)
	}
	cfg, err := a.addJSON("application/vnd.oci.image.config.v1+json", map[string]any{
		"created": "1970-01-01T00:00:00Z", "architecture": arch, "os": "linux", "config": im.Config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return nil, err
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	man, err := a.addJSON(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": cfg, "layers": descs,
	})
	if err != nil {
		return nil, err
	}
	var out []descriptor
	for _, name := range im.Names {
		d := man
		d.Platform = map[string]string{"architecture": arch, "os": "linux"}
		d.Annotations = map[string]string{
			"io.containerd.image.name":          name,
			"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
		}
		out = append(out, d)
	}
	return out, nil
}

func (a *archive) write(w io.Writer, manifests []descriptor) error {
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
	})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	put := func(name string, data []byte) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	for _, d := range slices.Sorted(maps.Keys(a.blobs)) {
		if err := put("blobs/sha256/"+strings.TrimPrefix(d, "sha256:"), a.blobs[d]); err != nil {
			return err
		}
	}
	return tw.Close()
}

func tarFolder(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	// WalkDir goes in lexical order.
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		return tarEntry(tw, dir, p)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func tarEntry(tw *tar.Writer, dir, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	var link string
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(dir, path); err != nil {
		return err
	}
	if fi.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.ModTime, h.AccessTime, h.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
	h.Format, h.PAXRecords = tar.FormatPAX, nil
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}
