package slot

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
)

// Manifest is the first file of an upgrade, and what its signature is over.
type Manifest struct {
	Format  int     `json:"format"`
	Board   string  `json:"board"`
	Version string  `json:"version"`
	Cmdline string  `json:"cmdline"` // without root and slot
	Files   []Entry `json:"files"`   // of the slot's folder, then the root
}

// Entry is a file of the upgrade, in the order of the archive.
type Entry struct {
	Name   string `json:"name"`
	Size   int64  `json:"sizeBytes"`
	SHA256 string `json:"sha256"`
}

const (
	format       = 1
	manifestName = "manifest.json"
	sigName      = "manifest.sig"
	// RootName is the file system of the root, the last file.
	RootName    = "root.squashfs"
	maxManifest = 1 << 20
)

// ErrSignature means that the upgrade is not signed by the holder of the key.
var ErrSignature = errors.New("the upgrade's signature does not match this system's key")

// Sign writes an upgrade.
func Sign(w io.Writer, key ed25519.PrivateKey, m Manifest, files []fat.File, root []byte) error {
	m.Format, m.Files = format, nil
	all := append(files[:len(files):len(files)], fat.File{Name: RootName, Data: root})
	for _, f := range all {
		sum := sha256.Sum256(f.Data)
		m.Files = append(m.Files, Entry{f.Name, int64(len(f.Data)), hex.EncodeToString(sum[:])})
	}
	head, err := json.Marshal(m)
	if err != nil {
		return err
	}
	all = append([]fat.File{{Name: manifestName, Data: head}, {Name: sigName, Data: ed25519.Sign(key, head)}}, all...)
	tw := tar.NewWriter(w)
	for _, f := range all {
		if err := tw.WriteHeader(&tar.Header{Name: f.Name, Mode: 0o644, Size: int64(len(f.Data)), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// Target is the disk that an upgrade is written to.
type Target struct {
	Disk      disk.Device
	SizeBytes int64
	Running   string // the slot that stays as it is
	Board     string
	Progress  func(done, total int64)
}

// Apply writes an upgrade to the slot that is not running and verifies it. The
// slot's folder is filled only when all of it was right.
func Apply(r io.Reader, keys []ed25519.PublicKey, t Target) (Manifest, error) {
	tr := tar.NewReader(r)
	m, err := readManifest(tr, keys)
	if err != nil {
		return m, err
	}
	if m.Board != t.Board {
		return m, fmt.Errorf("the upgrade is for %q, this is %q", m.Board, t.Board)
	}
	table, err := disk.Read(t.Disk, t.SizeBytes)
	if err != nil {
		return m, err
	}
	to := Other(t.Running)
	if len(table.Partitions) < 4 {
		return m, fmt.Errorf("the disk has %d partitions and no second slot", len(table.Partitions))
	}
	root := table.Partitions[Partition(to)]
	w := &writer{t: t, root: section{t.Disk, root.Start * disk.SectorBytes, root.Sectors * disk.SectorBytes}}
	for _, e := range m.Files {
		w.total += e.Size
	}
	for _, e := range m.Files {
		if err := w.file(tr, e); err != nil {
			return m, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	if !w.sawRoot {
		return m, fmt.Errorf("the upgrade has no %s", RootName)
	}
	if err := t.Disk.Sync(); err != nil {
		return m, err
	}
	boot := section{t.Disk, table.Partitions[0].Start * disk.SectorBytes, table.Partitions[0].Sectors * disk.SectorBytes}
	v, err := fat.Open(boot)
	if err != nil {
		return m, err
	}
	w.boot = append(w.boot, fat.File{Name: "cmdline.txt", Data: []byte(Cmdline(m.Cmdline, table.PARTUUID(Partition(to)), to) + "\n")})
	return m, v.ReplaceDir(boot, to, Room, w.boot, boot.Sync)
}

// ReadManifest reads the head of an upgrade and verifies its signature. What the
// files hold is seen by Apply only.
func ReadManifest(r io.Reader, keys []ed25519.PublicKey) (Manifest, error) {
	return readManifest(tar.NewReader(r), keys)
}

// Root is the manifest's entry of the root, if it has one.
func (m Manifest) Root() (Entry, bool) {
	for _, e := range m.Files {
		if e.Name == RootName {
			return e, true
		}
	}
	return Entry{}, false
}

// Running looks at the slot that runs: whether it is on trial, and the SHA-256 of
// the first n bytes of its root, which is that of the manifest it came with if it
// has as many.
func Running(d disk.Device, sizeBytes int64, running string, n int64) (trial bool, sum string, err error) {
	table, err := disk.Read(d, sizeBytes)
	if err != nil {
		return false, "", err
	}
	if len(table.Partitions) <= Partition(running) {
		return false, "", fmt.Errorf("the disk has %d partitions and no slot %s", len(table.Partitions), running)
	}
	_, boot, err := Boot(d, sizeBytes)
	if err != nil {
		return false, "", err
	}
	if trial, err = IsTrial(boot, running); err != nil {
		return false, "", err
	}
	root := table.Partitions[Partition(running)]
	h := sha256.New()
	length := min(n, root.Sectors*disk.SectorBytes)
	if _, err := io.Copy(h, io.NewSectionReader(d, root.Start*disk.SectorBytes, length)); err != nil {
		return trial, "", fmt.Errorf("read the root of slot %s: %w", running, err)
	}
	return trial, hex.EncodeToString(h.Sum(nil)), nil
}

func readManifest(tr *tar.Reader, keys []ed25519.PublicKey) (m Manifest, err error) {
	head, err := next(tr, manifestName, maxManifest)
	if err != nil {
		return m, err
	}
	sig, err := next(tr, sigName, ed25519.SignatureSize)
	if err != nil {
		return m, err
	}
	good := false
	for _, k := range keys {
		good = good || ed25519.Verify(k, head, sig)
	}
	if !good {
		return m, ErrSignature
	}
	if err := json.Unmarshal(head, &m); err != nil {
		return m, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Format != format {
		return m, fmt.Errorf("the upgrade has format %d, this system reads %d", m.Format, format)
	}
	return m, nil
}

// next reads a small file that must come next.
func next(tr *tar.Reader, name string, max int64) ([]byte, error) {
	h, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("not an upgrade: %w", err)
	}
	if h.Name != name || h.Size > max {
		return nil, fmt.Errorf("not an upgrade: %s where %s was expected", h.Name, name)
	}
	return io.ReadAll(tr)
}

// writer puts the files of an upgrade where they belong.
type writer struct {
	t           Target
	root        section
	boot        []fat.File
	sawRoot     bool
	done, total int64
}

func (w *writer) file(tr *tar.Reader, e Entry) error {
	h, err := tr.Next()
	if err != nil {
		return err
	}
	if h.Name != e.Name || h.Size != e.Size {
		return fmt.Errorf("%s of %d bytes is there instead", h.Name, h.Size)
	}
	if e.Name == RootName {
		return w.writeRoot(tr, e)
	}
	if e.Size > Room {
		return fat.ErrFull
	}
	var data bytes.Buffer
	if _, err := io.Copy(&data, tr); err != nil {
		return err
	}
	sum := sha256.Sum256(data.Bytes())
	if hex.EncodeToString(sum[:]) != e.SHA256 {
		return errors.New("its hash is not the manifest's")
	}
	w.boot = append(w.boot, fat.File{Name: e.Name, Data: data.Bytes()})
	w.advance(e.Size)
	return nil
}

// writeRoot writes a stream to the root's partition and reads it back.
func (w *writer) writeRoot(r io.Reader, e Entry) error {
	if e.Size > w.root.length {
		return fmt.Errorf("%d bytes do not fit into a partition of %d", e.Size, w.root.length)
	}
	buf := make([]byte, 1<<20)
	for at := int64(0); at < e.Size; {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), e.Size-at)])
		if err != nil {
			return err
		}
		if _, err := w.root.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
		w.advance(int64(n))
	}
	if err := w.root.Sync(); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(w.root, 0, e.Size), buf); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != e.SHA256 {
		return errors.New("what was written is not what the manifest says")
	}
	w.sawRoot = true
	return nil
}

func (w *writer) advance(n int64) {
	w.done += n
	if w.t.Progress != nil {
		w.t.Progress(w.done, w.total)
	}
}

// section is a partition of a disk.
type section struct {
	d             disk.Device
	start, length int64
}

func (s section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > s.length {
		return 0, io.ErrUnexpectedEOF
	}
	return s.d.ReadAt(p, s.start+off)
}

func (s section) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > s.length {
		return 0, io.ErrShortWrite
	}
	return s.d.WriteAt(p, s.start+off)
}

func (s section) Sync() error { return s.d.Sync() }

// Boot is the boot partition of a disk.
func Boot(d disk.Device, sizeBytes int64) (disk.Device, *fat.Volume, error) {
	table, err := disk.Read(d, sizeBytes)
	if err != nil {
		return nil, nil, err
	}
	if len(table.Partitions) == 0 {
		return nil, nil, disk.ErrNoTable
	}
	p := table.Partitions[0]
	boot := section{d, p.Start * disk.SectorBytes, p.Sectors * disk.SectorBytes}
	v, err := fat.Open(boot)
	return boot, v, err
}
