// Command image makes a card or disk that boots a machine as an edged device,
// without root, loop devices or containers: partition table and FAT are written
// in Go, the root by mksquashfs, an empty data partition by mke2fs.
//
//	image -board rpi -edged dist/edged-linux-arm64 -init init -kernel DIR -firmware DIR -debian DIR \
//	      -version v1 -key upgrade.key -out dist/edged-rpi.img
//
// Promise: the same inputs give the same bytes, of the image and of the upgrade
// beside it (.upgrade, for `edged upgrade`). Everything that was written is read
// back out of the image and compared before it is called done.
//
// Partitions: FAT with the boot loader and a folder per slot; roots A and B;
// data. On first start the device makes the data partition and grows it.
//
// Dangers: mksquashfs' and mke2fs' bytes depend on their versions; SOURCE_DATE_EPOCH
// is the time of every file.
//
// Sources: Raspberry Pi documentation, "The boot folder"; UAPI group, Boot Loader
// Specification; Documentation/driver-api/early-userspace/buffer-format.rst.
package main

import (
	"crypto/ed25519"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// build is one image being made.
type build struct {
	board                     board
	edged, init               string
	kernel, firmware, debian  string
	version, out, config, dir string
	time                      time.Time
	key                       ed25519.PrivateKey
	images                    []string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run() error {
	var b build
	name := flag.String("board", "", "rpi or amd64")
	key := flag.String("key", "", "`file` with the seed of the ed25519 key that signs upgrades, in hexadecimal")
	flag.StringVar(&b.edged, "edged", "", "edged for the board")
	flag.StringVar(&b.init, "init", "", "buildroot/init for the board")
	flag.StringVar(&b.kernel, "kernel", "", "`folder` of the kernel")
	flag.StringVar(&b.firmware, "firmware", "", "`folder` of the boot loader's files")
	flag.StringVar(&b.debian, "debian", "", "`folder` with Debian's e2fsck-static and ca-certificates for the board")
	flag.StringVar(&b.version, "version", "", "version of the release")
	flag.StringVar(&b.config, "config", "", "edged.yaml to put on it (default: an example)")
	flag.Func("preload", "`archive` of container images to bring along; may be repeated", func(v string) error {
		b.images = append(b.images, v)
		return nil
	})
	flag.StringVar(&b.out, "out", "", "`file` to write")
	flag.Parse()
	i := slices.IndexFunc(boards, func(x board) bool { return x.name == *name })
	if i < 0 || b.out == "" || flag.NArg() > 0 {
		flag.Usage()
		return fmt.Errorf("no board %q", *name)
	}
	b.board = boards[i]
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	b.time = time.Unix(epoch, 0).UTC()
	text, err := os.ReadFile(*key)
	if err != nil {
		return err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return fmt.Errorf("%s does not hold %d bytes in hexadecimal", *key, ed25519.SeedSize)
	}
	b.key = ed25519.NewKeyFromSeed(seed)
	if b.dir, err = os.MkdirTemp("", "edged-image-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	return b.write()
}
