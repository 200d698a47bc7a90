// Command mkimage writes the OCI image archive that a JSON specification
// describes (internal/ociimage.Spec). The demo, the end-to-end tests and the
// conformance run make their images with it, so that none needs a registry.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"edged/internal/ociimage"
)

func main() {
	spec := flag.String("spec", "images.json", "image `file`")
	out := flag.String("out", "images.tar", "archive to write")
	flag.Parse()
	if err := run(*spec, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(specPath, out string) error {
	data, err := os.ReadFile(specPath)
	if err != nil {
		return err
	}
	var spec ociimage.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("%s: %w", specPath, err)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := ociimage.Write(f, filepath.Dir(specPath), spec); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", out, err)
	}
	return f.Close()
}
