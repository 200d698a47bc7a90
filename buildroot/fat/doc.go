// Package fat writes and reads FAT32, as far as a boot partition needs it.
//
// [Format] lays a tree out in a partition; [Open] reads one; [Volume.Overwrite]
// replaces the bytes of a file by as many others where they lie, and
// [Volume.ReplaceDir] the content of a folder that was given room of its own.
//
// Promise: the same tree gives the same bytes. Overwrite touches the file's own
// sectors and nothing else: a file of one sector changes as a whole or not at
// all, on a disk that writes sectors whole. ReplaceDir touches the folder's own
// room, in which nothing else lies, and the part of the table that describes it:
// cut short, it harms no file outside the folder and can be begun again.
//
// Dangers: nothing here knows what a kernel that has mounted the same partition
// holds in memory; the callers never mount it. Folders of 65536 entries and
// files of 4 GiB are refused.
//
// May be imported by buildroot/... and cmd/edged. Starts no goroutines.
//
// Sources: Microsoft, FAT: General Overview of On-Disk Format 1.03 (2000);
// fs/fat/namei_vfat.c for the flags of lower-case names.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	sectorBytes  = 512
	entryBytes   = 32
	reservedSecs = 32
	rootCluster  = 2
	// minClusters is below which a volume is not FAT32 but FAT16.
	minClusters = 65525
	endOfChain  = 0x0FFFFFF8
	chainMask   = 0x0FFFFFFF

	attrLabel = 0x08
	attrDir   = 0x10
	attrLong  = 0x0F

	lowerBase = 0x08
	lowerExt  = 0x10
)

var (
	// ErrNotFAT means that the partition does not hold FAT32, or damaged.
	ErrNotFAT = errors.New("not a FAT32 volume")
	// ErrNotExist means that the path is not on the volume.
	ErrNotExist = errors.New("no such file on the FAT volume")
	// ErrFull means that the tree does not fit.
	ErrFull = errors.New("the FAT volume or the folder's room is too small")
)

// File is a file, or a folder if Dir is not nil.
type File struct {
	Name string
	Data []byte
	Dir  []File
	// Room, for a folder below the root, is how many bytes are set apart for it
	// and its content, for ReplaceDir.
	Room int64
}

// geometry is where things are on a volume, in sectors and clusters.
type geometry struct {
	sectors        int64
	clusterSectors int64
	fatSectors     int64
	clusters       uint32 // the first is number 2
}

func (g geometry) clusterBytes() int64 { return g.clusterSectors * sectorBytes }

func (g geometry) offset(cluster uint32) int64 {
	return (reservedSecs+2*g.fatSectors)*sectorBytes + int64(cluster-rootCluster)*g.clusterBytes()
}

// entry is the offset of a cluster's entry in copy 0 or 1 of the table.
func (g geometry) entry(cluster uint32, copy int64) int64 {
	return (reservedSecs+copy*g.fatSectors)*sectorBytes + int64(cluster)*4
}

func layout(size int64) (geometry, error) {
	g := geometry{sectors: size / sectorBytes, clusterSectors: 1}
	for g.sectors/g.clusterSectors > 1<<20 && g.clusterSectors < 64 {
		g.clusterSectors *= 2
	}
	// Each sector of a table describes 128 clusters, of which there are two tables.
	g.fatSectors = (g.sectors - reservedSecs + 2*g.clusterSectors + 128*g.clusterSectors + 1) / (128*g.clusterSectors + 2)
	n := (g.sectors - reservedSecs - 2*g.fatSectors) / g.clusterSectors
	if n < minClusters {
		return g, fmt.Errorf("%w: FAT32 needs %d clusters, here are %d", ErrFull, minClusters, n)
	}
	g.clusters = uint32(n)
	return g, nil
}

var le = binary.LittleEndian
