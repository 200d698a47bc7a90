// Package linknews hears what the kernel tells of links, addresses and routes
// (rtnetlink(7)).
//
// It is not a netlink library: it asks the kernel nothing and changes nothing. It may
// be imported by anybody. It starts no goroutines; [Watch] runs in its caller's.
package linknews

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Groups of notices, to be added up.
const (
	Links  = 1 << (unix.RTNLGRP_LINK - 1)
	Addrs  = 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)
	Routes = 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)
)

// noticeBytes is what is read of a notice: its head, and a link's name.
const noticeBytes = 256

// Open subscribes to groups of notices. Each read of the file is one notice, or
// ENOBUFS if some were lost; closing it ends a reader.
func Open(groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's notices of links: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to the kernel's notices of links: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// Watch calls poke for each notice that matters, and when some were lost, until f
// is closed. What it gives matters is cut after the first attribute of most.
func Watch(f *os.File, matters func(notice []byte) bool, poke func()) {
	buf := make([]byte, noticeBytes)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			poke()
		case err != nil:
			return
		case matters(buf[:n]):
			poke()
		}
	}
}

// Split tells a notice's type (RTM_NEWLINK, ...) from its body; ok is false if it
// is too short to have one.
func Split(notice []byte) (kind uint16, body []byte, ok bool) {
	if len(notice) < unix.SizeofNlMsghdr {
		return 0, nil, false
	}
	return binary.NativeEndian.Uint16(notice[4:]), notice[unix.SizeofNlMsghdr:], true
}

// LinkName is what follows the head of a link's notice: the link's name, ended by a
// zero, and more. ok is false if there is none.
func LinkName(body []byte) (name []byte, ok bool) {
	const at = unix.SizeofIfInfomsg + unix.SizeofRtAttr // the name is the first attribute
	if len(body) < at {
		return nil, false
	}
	return body[at:], true
}
