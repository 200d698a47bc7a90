package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzClusterFile: whatever cluster.json holds, it is read or refused, and what
// was read is written and read back.
func FuzzClusterFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"settings":{"cluster-cidr":"10.42.0.0/16"},"members":[{"id":"1","peerURLs":["https://a:1"]}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"settings":null,"members":[null]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, clusterFileName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readClusterFile(dir)
		if err != nil {
			return
		}
		if err := c.write(dir); err != nil {
			t.Fatal(err)
		}
		again, err := readClusterFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.write(dir); err != nil {
			t.Fatal(err)
		}
		if twice, err := readClusterFile(dir); err != nil || !reflect.DeepEqual(again, twice) {
			t.Errorf("%+v is read back as %+v, %v", again, twice, err)
		}
	})
}
