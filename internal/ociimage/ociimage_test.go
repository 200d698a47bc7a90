package ociimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestArchiveIsReproducibleAndComplete(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "root/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root/bin/app"), []byte("#!"), 0o4755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("app", filepath.Join(dir, "root/bin/link")); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Arch: "arm64", Layers: map[string]string{"root": "root"}, Images: []Image{
		{Names: []string{"example.org/app:1", "example.org/app:2"}, Layers: []string{"root"}, Config: Config{Entrypoint: []string{"/bin/app"}}},
	}}
	var one, two bytes.Buffer
	if err := Write(&one, dir, spec); err != nil {
		t.Fatal(err)
	}
	if err := Write(&two, dir, spec); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two archives of the same folder differ")
	}
	files := map[string][]byte{}
	for tr := tar.NewReader(&one); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 2 || index.Manifests[0].Digest != index.Manifests[1].Digest {
		t.Fatalf("manifests %+v: want one image under two names", index.Manifests)
	}
	for _, m := range index.Manifests {
		if _, ok := files["blobs/sha256/"+m.Digest[len("sha256:"):]]; !ok {
			t.Errorf("no blob for %s", m.Digest)
		}
	}
}

func TestUnknownLayerIsRefused(t *testing.T) {
	err := Write(io.Discard, ".", Spec{Images: []Image{{Names: []string{"a:b"}, Layers: []string{"nope"}}}})
	if err == nil {
		t.Fatal("no error")
	}
}
