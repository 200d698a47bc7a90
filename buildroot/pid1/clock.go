package pid1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// setClockAtLeast never lets the clock run before t: boards without one start
// in 1970.
func setClockAtLeast(t time.Time, c *console) error {
	now := time.Now()
	if !now.Before(t) {
		return nil
	}
	c.say("the clock was at %s and goes on from %s", now.UTC().Format(time.DateTime), t.UTC().Format(time.DateTime))
	return setClock(t)
}

func setClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}

const clockFile = "clock"

// lastKnownTime is the newest time that the data partition knows of: what was
// saved at the last orderly stop, or when the store was written last. It costs no
// write of its own.
func lastKnownTime(state, data string) (last time.Time) {
	for _, pattern := range []string{state + "/" + clockFile, data + "/store", data + "/store/*", data + "/store/wal/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, p := range paths {
			if fi, err := os.Stat(p); err == nil && fi.ModTime().After(last) {
				last = fi.ModTime()
			}
		}
	}
	return last
}

func saveTime(dir string) error {
	return os.WriteFile(filepath.Join(dir, clockFile), nil, 0o644)
}

const (
	ntpBytes = 48
	// ntpEpoch is 1970 in NTP's seconds, which count from 1900.
	ntpEpoch = 2208988800
	// stepAbove is what is too far off to be slewed at 500 ppm.
	stepAbove = 500 * time.Millisecond
	ntpSoon   = 15 * time.Second
	ntpEvery  = time.Hour
)

// keepTime asks the time servers, at first often, then every hour.
func keepTime(servers []string, n *network, c *console) {
	<-n.up
	told := false
	for {
		list := servers
		if len(list) == 0 {
			for _, a := range n.timeServers() {
				list = append(list, a.String())
			}
		}
		if len(list) == 0 {
			list = []string{"pool.ntp.org"}
		}
		wait := ntpSoon
		for _, server := range list {
			offset, err := askNTP(net.JoinHostPort(server, "123"))
			if err == nil {
				err = adjustClock(offset)
			}
			if err == nil {
				err = saySynchronised()
			}
			if err == nil {
				if !told {
					c.say("the clock was off by %v (%s)", -offset, server)
					told = true
				}
				wait = ntpEvery
				break
			}
		}
		if wait == ntpSoon && !told {
			wait = min(2*ntpSoon, ntpEvery)
		}
		time.Sleep(wait)
	}
}

func askNTP(server string) (time.Duration, error) {
	conn, err := net.DialTimeout("udp", server, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, err
	}
	req := make([]byte, ntpBytes)
	req[0] = 4<<3 | 3 // version 4, client
	cookie := uint64(randomID())<<32 | uint64(randomID())
	binary.BigEndian.PutUint64(req[40:], cookie)
	sent := time.Now()
	if _, err := conn.Write(req); err != nil {
		return 0, err
	}
	buf := make([]byte, 512)
	size, err := conn.Read(buf)
	if err != nil {
		return 0, err
	}
	return ntpOffset(buf[:size], cookie, sent, time.Now())
}

var errNTP = errors.New("not an answer of a time server")

// ntpOffset is how much the server's clock is ahead (RFC 4330, section 5). The
// cookie stood in for our own time, so that nobody else can answer.
func ntpOffset(b []byte, cookie uint64, sent, received time.Time) (time.Duration, error) {
	if len(b) < ntpBytes || b[0]&7 != 4 || b[0]>>6 == 3 || b[1] == 0 || b[1] > 15 || binary.BigEndian.Uint64(b[24:]) != cookie {
		return 0, errNTP
	}
	in, out := ntpTime(b[32:]), ntpTime(b[40:])
	if out.Before(in) || out.Year() < 2020 {
		return 0, fmt.Errorf("%w: it thinks it is %v", errNTP, out)
	}
	// Each difference apart: a span of decades fits a Duration, its double may not.
	return in.Sub(sent)/2 + out.Sub(received)/2, nil
}

// ntpTime reads 32 bits of seconds and 32 of a fraction; below the middle they
// are of the era that begins in 2036.
func ntpTime(b []byte) time.Time {
	sec := int64(binary.BigEndian.Uint32(b))
	if sec < math.MaxInt32 {
		sec += 1 << 32
	}
	frac := uint64(binary.BigEndian.Uint32(b[4:]))
	return time.Unix(sec-ntpEpoch, int64(frac*1e9>>32))
}

func adjustClock(offset time.Duration) error {
	if offset.Abs() > stepAbove {
		return setClock(time.Now().Add(offset))
	}
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: timexLong(offset.Microseconds())})
	return err
}

// saySynchronised tells the kernel that its clock is right, and so the daemon, and
// the hardware's clock if there is one. The kernel doubts it again when nobody has
// said so for 9 hours (500 ppm to 16 s, kernel/time/ntp.c).
func saySynchronised() error {
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Maxerror: timexLong(stepAbove.Microseconds())})
	return err
}
