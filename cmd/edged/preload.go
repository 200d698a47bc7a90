package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/cluster/manifests"
	"edged/internal/atomicfile"
)

// preloaded remembers which archives of --image-dir were imported, so that a
// restart does not read them again: name to size and time.
type preloaded struct {
	Version int                `json:"version"`
	Files   map[string]archive `json:"files"`
}

type archive struct {
	Size    int64     `json:"sizeBytes"`
	ModTime time.Time `json:"modTime"`
}

const preloadedVersion = 1

// importImages imports the archives that lie in --image-dir. One that cannot be
// read is told and does not keep the others back.
func (d *device) importImages(ctx context.Context) error {
	entries, err := os.ReadDir(d.cfg.imageDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path := filepath.Join(d.cfg.dataDir, "images.json")
	known := readPreloaded(path)
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || !strings.Contains(name, ".tar") || strings.HasPrefix(name, ".") {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		want := archive{fi.Size(), fi.ModTime().UTC()}
		if known.Files[name] == want {
			continue
		}
		if err := d.importArchive(ctx, filepath.Join(d.cfg.imageDir, name)); err != nil {
			d.log.Error("an archive of images was not imported", "file", name, "err", err)
			continue
		}
		known.Files[name] = want
		data, err := json.Marshal(known)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// applyManifests keeps the objects of --manifests-dir in the cluster.
func (d *device) applyManifests(ctx context.Context) error {
	events := d.events.Component("edged-manifests")
	return manifests.New(manifests.Config{
		Dir: d.cfg.manifestsDir, Registry: d.registry, Logger: d.log,
		Failed: func(file string, err error) {
			if n, ok := registry.For[*corev1.Node](d.registry).Get("", d.cfg.nodeName); ok {
				events.Event(recorder.Reference("v1", "Node", n, ""), corev1.EventTypeWarning, "FailedManifest", file+": "+err.Error())
			}
		},
	}).Run(ctx)
}

// readPreloaded forgets what it cannot read: the archives are imported again.
func readPreloaded(path string) preloaded {
	p := preloaded{Version: preloadedVersion, Files: map[string]archive{}}
	data, err := os.ReadFile(path)
	if err != nil {
		return p
	}
	var have preloaded
	if json.Unmarshal(data, &have) == nil && have.Version == preloadedVersion && have.Files != nil {
		return have
	}
	return p
}

func (d *device) importArchive(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	images, err := d.engine.ImportImages(ctx, f)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	for _, im := range images {
		d.log.Info("an image was imported", "image", first(im.Names), "file", filepath.Base(path))
	}
	return nil
}
