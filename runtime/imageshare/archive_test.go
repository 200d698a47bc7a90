package imageshare_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"testing"
)

// readArchive reads the blobs of an OCI archive and returns its first manifest's
// digest.
func readArchive(t *testing.T, archived []byte, blobs map[string][]byte) (root string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(archived)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return root
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(hdr.Name, "blobs/sha256/") && len(path.Base(hdr.Name)) == 64:
			blobs["sha256:"+path.Base(hdr.Name)] = data
		case hdr.Name == "index.json":
			var idx struct{ Manifests []struct{ Digest string } }
			if err := json.Unmarshal(data, &idx); err != nil || len(idx.Manifests) == 0 {
				t.Fatalf("index.json: %s: %v", data, err)
			}
			root = idx.Manifests[0].Digest
		}
	}
}
