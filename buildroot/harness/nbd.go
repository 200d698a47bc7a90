package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
)

// Disk is a disk with a volatile cache, served over NBD. Reads see what was
// written; only a flush makes it last.
type Disk struct {
	Socket string
	f      *os.File
	size   int64
	l      net.Listener
	rng    *rand.Rand
	wg     sync.WaitGroup

	mu      sync.Mutex
	pending []write
	bytes   int
	conns   map[net.Conn]bool
	cutIn   int           // flushes until the power goes; 0: it stays
	dark    chan struct{} // closed when it went; nil: nobody asked
	// Lost counts the writes that power cuts took.
	Lost int
}

type write struct {
	off  int64
	data []byte
}

// maxPending is what the cache holds: a disk writes some day.
const maxPending = 32 << 20

// ServeDisk serves a file on a socket.
func ServeDisk(path, socket string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	d := &Disk{Socket: socket, f: f, size: size, l: l, rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), conns: map[net.Conn]bool{}}
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[c] = true
			d.mu.Unlock()
			d.wg.Add(1)
			go func() {
				defer d.wg.Done()
				_ = d.serve(c) // the client is gone
				c.Close()
				d.mu.Lock()
				delete(d.conns, c)
				d.mu.Unlock()
			}()
		}
	}()
	return d, nil
}

// Close ends the service.
func (d *Disk) Close() error {
	err := d.l.Close()
	d.mu.Lock()
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
	return errors.Join(err, d.f.Close())
}

// ReadAt reads what was written last.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.f.ReadAt(p, off)
	for _, w := range d.pending {
		if from, to := max(off, w.off), min(off+int64(n), w.off+int64(len(w.data))); from < to {
			copy(p[from-off:to-off], w.data[from-w.off:to-w.off])
		}
	}
	return n, err
}

// WriteAt writes into the cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, write{off, slices.Clone(p)})
	if d.bytes += len(p); d.bytes > maxPending {
		return len(p), d.flush()
	}
	return len(p), nil
}

// Sync makes everything last.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flush()
}

func (d *Disk) flush() error {
	for _, w := range d.pending {
		if _, err := d.f.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	d.pending, d.bytes = nil, 0
	return nil
}

// Cut is the end of power: of what was not flushed, each write is there, not
// there, or torn between two sectors, in any order.
func (d *Disk) Cut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut()
}

func (d *Disk) cut() error {
	d.rng.Shuffle(len(d.pending), func(i, j int) { d.pending[i], d.pending[j] = d.pending[j], d.pending[i] })
	for i, w := range d.pending {
		fate := d.rng.IntN(3)
		if i == 0 {
			fate = 0 // a cut that takes nothing shows nothing
		}
		switch fate {
		case 0:
			d.Lost++
			continue
		case 1:
			if n := len(w.data) / 512; n > 1 {
				w.data = w.data[:512*d.rng.IntN(n)]
				d.Lost++
			}
		}
		if _, err := d.f.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	d.pending, d.bytes = nil, 0
	return nil
}

var errDark = errors.New("the power is gone")

// CutAtFlush lets the power go when the n-th flush from now arrives, which is the
// worst moment: what it was to make last is lost in part, and nothing that comes
// after it is heard. The channel is closed then.
func (d *Disk) CutAtFlush(n int) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutIn, d.dark = n, make(chan struct{})
	return d.dark
}

// Spare takes CutAtFlush back, if the power has not gone.
func (d *Disk) Spare() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	spared := d.cutIn > 0
	d.cutIn = 0
	return spared
}

func (d *Disk) powerGoes() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutIn == 0 {
		return false
	}
	if d.cutIn--; d.cutIn > 0 {
		return false
	}
	if err := d.cut(); err != nil {
		return false
	}
	for c := range d.conns {
		c.Close()
	}
	close(d.dark)
	return true
}

// NBD's numbers.
const (
	nbdMagic       = 0x4e42444d41474943
	nbdOptMagic    = 0x49484156454F5054
	nbdReplyMagic  = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdSimpleReply = 0x67446698
	optExportName  = 1
	optAbort       = 2
	optGo          = 7
	repACK         = 1
	repInfo        = 3
	repUnsupported = 1<<31 + 1
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdFUA         = 1
	nbdFlags       = 1 | 1<<2 | 1<<3 // has flags, flush, FUA
	maxRequest     = 64 << 20
)

var be = binary.BigEndian

func (d *Disk) serve(c net.Conn) error {
	hello := be.AppendUint64(be.AppendUint64(nil, nbdMagic), nbdOptMagic)
	if _, err := c.Write(be.AppendUint16(hello, 3)); err != nil { // fixed newstyle, no zeroes
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c, flags[:]); err != nil {
		return err
	}
	if err := d.negotiate(c); err != nil {
		return err
	}
	for {
		if err := d.request(c); err != nil {
			return err
		}
	}
}

func (d *Disk) negotiate(c net.Conn) error {
	for {
		var h [16]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return err
		}
		opt, n := be.Uint32(h[8:]), be.Uint32(h[12:])
		if be.Uint64(h[:]) != nbdOptMagic || n > 4096 {
			return errors.New("not an NBD client")
		}
		if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, nbdReplyMagic), opt), kind)
			_, err := c.Write(append(be.AppendUint32(b, uint32(len(data))), data...))
			return err
		}
		info := be.AppendUint16(be.AppendUint64(nil, uint64(d.size)), nbdFlags)
		switch opt {
		case optExportName:
			_, err := c.Write(info)
			return err
		case optGo:
			if err := reply(repInfo, append([]byte{0, 0}, info...)); err != nil {
				return err
			}
			return reply(repACK, nil)
		case optAbort:
			return io.EOF
		default:
			if err := reply(repUnsupported, nil); err != nil {
				return err
			}
		}
	}
}

func (d *Disk) request(c net.Conn) error {
	var h [28]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return err
	}
	flags, kind, off, n := be.Uint16(h[4:]), be.Uint16(h[6:]), int64(be.Uint64(h[16:])), int64(be.Uint32(h[24:]))
	if be.Uint32(h[:]) != nbdRequest || n > maxRequest {
		return errors.New("not an NBD request")
	}
	var data []byte
	var err error
	if kind == cmdWrite {
		data = make([]byte, n)
		if _, err := io.ReadFull(c, data); err != nil {
			return err
		}
	}
	switch {
	case kind == cmdDisconnect:
		return io.EOF
	case (kind == cmdRead || kind == cmdWrite) && (off < 0 || off+n > d.size):
		err = fmt.Errorf("%d bytes at %d are not on the disk", n, off)
	case kind == cmdRead:
		data = make([]byte, n)
		_, err = d.ReadAt(data, off)
	case kind == cmdWrite:
		_, err = d.WriteAt(data, off)
		data = nil
	case kind != cmdFlush:
		err = fmt.Errorf("request %d is not known", kind)
	}
	if err == nil && (kind == cmdFlush || flags&cmdFUA != 0) {
		if d.powerGoes() {
			return errDark
		}
		err = d.Sync()
	}
	reply := be.AppendUint32(nil, nbdSimpleReply)
	if err != nil {
		reply, data = be.AppendUint32(reply, 5), nil // EIO
	} else {
		reply = be.AppendUint32(reply, 0)
	}
	_, err = c.Write(append(append(reply, h[8:16]...), data...))
	return err
}
