package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

const (
	version     = 1
	magic       = "edgp"
	headerBytes = 9
	// maxFrameBytes bounds what a damaged or hostile length makes us allocate.
	maxFrameBytes = 64 << 20
	// maxHelloBytes is for who has not been welcomed yet.
	maxHelloBytes = 64 << 10

	kindHello    = 1
	kindWelcome  = 2
	kindMessage  = 3
	kindCall     = 4
	kindReply    = 5
	kindAck      = 6
	kindSnapshot = 7 // the message that announces one
	kindData     = 8
	kindEnd      = 9

	purposeStream   = 1
	purposeSnapshot = 2
	purposeCall     = 3
)

// Why a connection is refused.
const (
	welcomed = iota
	refusedVersion
	refusedCluster
	refusedRemoved
	refusedMember
	refusedBusy
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// ErrFrame marks a frame that is not as it was sent.
	ErrFrame = errors.New("damaged frame")
	// ErrRefused says that the other side did not take the connection.
	ErrRefused = errors.New("the other member refuses the connection")
)

// appendFrame appends the frame whose payload fill appends.
func appendFrame(b []byte, kind byte, fill func([]byte) ([]byte, error)) ([]byte, error) {
	at := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, kind)
	b, err := fill(b)
	if err != nil {
		return b[:at], err
	}
	n := len(b) - at - headerBytes
	if n > maxFrameBytes {
		return b[:at], fmt.Errorf("a frame of %d bytes is too large", n)
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(n))
	binary.LittleEndian.PutUint32(b[at+4:], crc32.Checksum(b[at+8:], castagnoli))
	return b, nil
}

func frame(b []byte, kind byte, payload []byte) []byte {
	// Payloads made here fit.
	b, _ = appendFrame(b, kind, func(b []byte) ([]byte, error) { return append(b, payload...), nil })
	return b
}

// readFrame reads one frame. The payload is in buf if it fits there, and valid
// until the next call with it.
func readFrame(r io.Reader, buf []byte, limit int) (kind byte, payload []byte, err error) {
	var head [headerBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(head[:]))
	if n > limit {
		return 0, nil, fmt.Errorf("%w: length %d", ErrFrame, n)
	}
	if n > cap(buf) {
		// Grown while bytes arrive: a length alone allocates little.
		if payload, err = readGrowing(r, n); err != nil {
			return 0, nil, err
		}
	} else {
		payload = buf[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return 0, nil, err
		}
	}
	crc := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, payload)
	if crc != binary.LittleEndian.Uint32(head[4:]) {
		return 0, nil, fmt.Errorf("%w: checksum", ErrFrame)
	}
	return head[8], payload, nil
}

func readGrowing(r io.Reader, n int) ([]byte, error) {
	out := make([]byte, 0, min(n, 1<<20))
	for len(out) < n {
		at := len(out)
		step := min(n-at, max(1<<20, at))
		out = append(out, make([]byte, step)...)
		if _, err := io.ReadFull(r, out[at:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// hello is how a connection begins.
type hello struct {
	purpose           byte
	cluster, from, to uint64
	urls              []string
}

func (h hello) encode() []byte {
	b := append([]byte(magic), version, h.purpose)
	b = binary.LittleEndian.AppendUint64(b, h.cluster)
	b = binary.LittleEndian.AppendUint64(b, h.from)
	b = binary.LittleEndian.AppendUint64(b, h.to)
	return append(b, strings.Join(h.urls, "\n")...)
}

// errVersion says that the other side speaks another version.
var errVersion = errors.New("the other member speaks another version: update the older one")

func decodeHello(b []byte) (h hello, err error) {
	if len(b) < 5 || string(b[:4]) != magic {
		return h, fmt.Errorf("%w: not a hello", ErrFrame)
	}
	if b[4] != version {
		return h, errVersion
	}
	if len(b) < 30 {
		return h, fmt.Errorf("%w: a hello of %d bytes", ErrFrame, len(b))
	}
	h = hello{purpose: b[5], cluster: binary.LittleEndian.Uint64(b[6:]), from: binary.LittleEndian.Uint64(b[14:]), to: binary.LittleEndian.Uint64(b[22:])}
	if len(b) > 30 {
		h.urls = strings.Split(string(b[30:]), "\n")
	}
	return h, nil
}

// call is a question, or with method 0 and 1 the answer to one: 0 it is, 1 it
// is an error's text.
type call struct {
	id     uint64
	method byte
	body   []byte
}

const (
	answered = 0
	failed   = 1
)

func (c call) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, c.id)
	return append(append(b, c.method), c.body...)
}

func decodeCall(b []byte) (call, error) {
	if len(b) < 9 {
		return call{}, fmt.Errorf("%w: a call of %d bytes", ErrFrame, len(b))
	}
	return call{binary.LittleEndian.Uint64(b), b[8], append([]byte(nil), b[9:]...)}, nil
}

// readBuffer is what a connection keeps for reading: most frames are smaller.
const readBuffer = 4 << 10
