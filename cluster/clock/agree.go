package clock

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// Quality says what a reading is worth; more is better.
type Quality byte

// Qualities.
const (
	Unknown      Quality = iota
	Unset                // goes on from the last known time
	Set                  // by a battery, a person or other devices
	Synchronised         // by NTP
)

func (q Quality) String() string {
	return [...]string{"unknown", "unset", "set", "synchronised"}[min(q, Synchronised)]
}

// reading is a clock's, as its offset to some other.
type reading struct {
	offset  time.Duration
	quality Quality
}

// agree is what clocks agree on: the median of the best.
func agree(all []reading) (best reading) {
	for _, r := range all {
		best.quality = max(best.quality, r.quality)
	}
	good := slices.DeleteFunc(slices.Clone(all), func(r reading) bool { return r.quality < best.quality })
	if len(good) == 0 {
		return reading{}
	}
	slices.SortFunc(good, func(a, b reading) int { return cmp.Compare(a.offset, b.offset) })
	return good[len(good)/2]
}

const messages = 1 // their version

var errMessage = errors.New("not a message about clocks that this edged understands")

type question struct {
	quality Quality
	now     int64
}

func (q question) encode() []byte {
	return binary.LittleEndian.AppendUint64([]byte{messages, byte(q.quality)}, uint64(q.now))
}

func decodeQuestion(b []byte) (question, error) {
	if len(b) < 10 || b[0] < messages || b[1] == 0 || Quality(b[1]) > Synchronised {
		return question{}, errMessage
	}
	return question{Quality(b[1]), int64(binary.LittleEndian.Uint64(b[2:]))}, nil
}

type answer struct {
	quality Quality // Unknown: nothing is agreed yet
	now     int64
	offset  time.Duration // of what is agreed, to now
}

func (a answer) encode() []byte {
	b := binary.LittleEndian.AppendUint64([]byte{messages, byte(a.quality)}, uint64(a.now))
	return binary.LittleEndian.AppendUint64(b, uint64(a.offset))
}

func decodeAnswer(b []byte) (answer, error) {
	if len(b) < 18 || b[0] < messages || Quality(b[1]) > Synchronised {
		return answer{}, errMessage
	}
	return answer{Quality(b[1]), int64(binary.LittleEndian.Uint64(b[2:])), time.Duration(binary.LittleEndian.Uint64(b[10:]))}, nil
}
