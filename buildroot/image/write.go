package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
	"edged/buildroot/pid1"
	"edged/buildroot/slot"
)

const example = `# edged.yaml: the same for all cards of a fleet. docs/flash.md has every key.
#
# hostname: edged-{serial}
# cluster: home                # devices of one name and secret become a cluster
# secret: a long random text   # moved off this partition at the first start
# bootstrap-expect: 3          # how many found it
# labels: {room: cellar}
# kubeconfig: boot
# ntp: [10.0.0.1]
# network:
#   links: [{name: eth0, address: 10.0.0.5/24, gateway: 10.0.0.1}]
#   dns: [10.0.0.1]
# edged:
#   log-level: debug
`

// write makes the image and the upgrade, and reads the image back.
func (b *build) write() error {
	root, err := b.root()
	if err != nil {
		return err
	}
	if len(root) > rootBytes {
		return fmt.Errorf("the root has %d bytes, its partition %d", len(root), rootBytes)
	}
	files, err := b.slotFiles()
	if err != nil {
		return err
	}
	table := b.table()
	tree, err := b.bootTree(files, table)
	if err != nil {
		return err
	}
	if err := b.writeImage(table, tree, root); err != nil {
		return err
	}
	if err := b.readBack(table, tree, root); err != nil {
		return fmt.Errorf("what was written is not what is there: %w", err)
	}
	f, err := os.Create(strings.TrimSuffix(b.out, ".img") + ".upgrade")
	if err != nil {
		return err
	}
	m := slot.Manifest{Board: b.board.name, Version: b.version, Cmdline: b.board.cmdline}
	return errors.Join(slot.Sign(f, b.key, m, files, root), f.Close())
}

// slotFiles are kernel and friends: the folder of a slot but its command line.
func (b *build) slotFiles() (out []fat.File, err error) {
	path, err := first(filepath.Join(b.kernel, b.board.kernel))
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out = append(out, fat.File{Name: "vmlinuz", Data: kernel})
	if len(b.board.initModules) > 0 {
		initrd, err := b.initrd()
		if err != nil {
			return nil, fmt.Errorf("initial RAM disk: %w", err)
		}
		out = append(out, fat.File{Name: "initrd", Data: initrd})
	}
	for _, pattern := range b.board.bootFiles {
		paths, err := filepath.Glob(filepath.Join(b.kernel, pattern))
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			data, err := os.ReadFile(p)
			if err != nil {
				return nil, err
			}
			out = append(out, fat.File{Name: filepath.Base(p), Data: data})
		}
	}
	return out, nil
}

func (b *build) table() disk.Table {
	t := disk.Table{DiskID: mbrID}
	if b.board.gpt {
		t = disk.Table{GUID: gptID}
	}
	at := int64(disk.Align)
	for i, size := range []int64{fatBytes, rootBytes, rootBytes, dataBytes} {
		p := disk.Partition{Start: at, Sectors: size / disk.SectorBytes}
		if b.board.gpt {
			p.Type, p.ID, p.Name = disk.TypeLinux, espID, []string{"boot", "root-a", "root-b", "data"}[i]
			p.ID[15] += byte(i)
			if i == 0 {
				p.Type = disk.TypeESP
			}
		} else if p.MBRType = disk.MBRLinux; i == 0 {
			p.MBRType = disk.MBRFAT32
		}
		t.Partitions = append(t.Partitions, p)
		at += p.Sectors
	}
	return t
}

// bootTree is the boot partition's content.
func (b *build) bootTree(files []fat.File, table disk.Table) ([]fat.File, error) {
	config := []byte(example)
	if b.config != "" {
		var err error
		if config, err = os.ReadFile(b.config); err != nil {
			return nil, err
		}
		if _, err := pid1.ParseConfig(config); err != nil {
			return nil, err
		}
	}
	config, err := pid1.PadConfig(config)
	if err != nil {
		return nil, err
	}
	cmdline := slot.Cmdline(b.board.cmdline, table.PARTUUID(slot.Partition("a")), "a")
	files = append(slices.Clone(files), fat.File{Name: "cmdline.txt", Data: []byte(cmdline + "\n")})
	kubeconfig, err := pid1.PadConfig([]byte("# filled in by the device if edged.yaml says `kubeconfig: boot`\n"))
	if err != nil {
		return nil, err
	}
	tree := []fat.File{{Name: pid1.ConfigName, Data: config}, {Name: pid1.KubeconfigName, Data: kubeconfig}}
	if b.board.gpt {
		loader, err := os.ReadFile(filepath.Join(b.firmware, "systemd-bootx64.efi"))
		if err != nil {
			return nil, err
		}
		tree = append(tree,
			fat.File{Name: "EFI", Dir: []fat.File{{Name: "BOOT", Dir: []fat.File{{Name: "BOOTX64.EFI", Data: loader}}}}},
			fat.File{Name: "loader", Dir: []fat.File{
				{Name: "loader.conf", Data: []byte("timeout 0\neditor no\n")},
				{Name: "entries", Room: slot.EntriesRoom, Dir: slot.Entries("a", 0, map[string]string{"a": cmdline})},
			}})
	} else {
		tree = append(tree, fat.File{Name: "config.txt", Data: slot.ConfigTxt("a")}, fat.File{Name: "tryboot.txt", Data: slot.ConfigTxt("b")})
	}
	for _, name := range b.board.firmware {
		data, err := os.ReadFile(filepath.Join(b.firmware, name))
		if err != nil {
			return nil, err
		}
		tree = append(tree, fat.File{Name: name, Data: data})
	}
	var images []fat.File
	for _, path := range b.images {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		images = append(images, fat.File{Name: filepath.Base(path), Data: data})
	}
	if images != nil {
		tree = append(tree, fat.File{Name: "images", Dir: images})
	}
	return append(tree,
		fat.File{Name: "a", Room: slot.Room, Dir: files},
		fat.File{Name: "b", Room: slot.Room, Dir: []fat.File{}},
	), nil
}

// size leaves room for GPT's copy at the end.
func size(t disk.Table) int64 {
	last := t.Partitions[len(t.Partitions)-1]
	return (last.Start+last.Sectors)*disk.SectorBytes + mib
}

func (b *build) writeImage(t disk.Table, tree []fat.File, root []byte) error {
	f, err := os.Create(b.out)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size(t)); err != nil { // what is not written is zero
		return err
	}
	if err := t.Write(f, size(t)); err != nil {
		return err
	}
	boot := io.NewOffsetWriter(f, t.Partitions[0].Start*disk.SectorBytes)
	if err := fat.Format(boot, fatBytes, imageLabel, fatID, tree); err != nil {
		return err
	}
	if _, err := f.WriteAt(root, t.Partitions[slot.Partition("a")].Start*disk.SectorBytes); err != nil {
		return err
	}
	return f.Close()
}

// readBack opens the image as a device would and compares everything.
func (b *build) readBack(want disk.Table, tree []fat.File, root []byte) error {
	f, err := os.Open(b.out)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := disk.Read(f, size(want))
	if err != nil {
		return err
	}
	if !slices.Equal(t.Partitions, want.Partitions) {
		return fmt.Errorf("partitions %+v, want %+v", t.Partitions, want.Partitions)
	}
	v, err := fat.Open(io.NewSectionReader(f, t.Partitions[0].Start*disk.SectorBytes, fatBytes))
	if err != nil {
		return err
	}
	if err := compare(v, "", tree); err != nil {
		return err
	}
	have := make([]byte, len(root))
	if _, err := f.ReadAt(have, t.Partitions[slot.Partition("a")].Start*disk.SectorBytes); err != nil {
		return err
	}
	if !bytes.Equal(have, root) {
		return errors.New("the root differs")
	}
	return nil
}

func compare(v *fat.Volume, dir string, want []fat.File) error {
	for _, f := range want {
		path := dir + "/" + f.Name
		if f.Dir != nil {
			if err := compare(v, path, f.Dir); err != nil {
				return err
			}
			continue
		}
		if have, err := v.ReadFile(path); err != nil || !bytes.Equal(have, f.Data) {
			return fmt.Errorf("%s: %d bytes of %d: %w", path, len(have), len(f.Data), err)
		}
	}
	return nil
}
