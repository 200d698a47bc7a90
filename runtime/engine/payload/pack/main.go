// Command pack compresses programs for the payload: pack <folder> <program>...
// writes <folder>/<name>-<hash>.zst for each program and removes what other
// versions of it left there. The same input gives the same bytes.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: pack <folder> <program>...")
		os.Exit(2)
	}
	for _, program := range os.Args[2:] {
		if err := pack(os.Args[1], program); err != nil {
			fmt.Fprintf(os.Stderr, "pack %s: %v\n", program, err)
			os.Exit(1)
		}
	}
}

func pack(dir, program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	// The window is what unpacking on a device costs in memory.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	name := fmt.Sprintf("%s-%s.zst", filepath.Base(program), hex.EncodeToString(sum[:6]))
	old, err := filepath.Glob(filepath.Join(dir, filepath.Base(program)+"-*.zst"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, name), enc.EncodeAll(data, nil), 0o644)
}
