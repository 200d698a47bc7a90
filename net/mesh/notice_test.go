package mesh

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func notice(kind uint16, body []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint16(b[4:], kind)
	return append(b, body...)
}

func link(name string) []byte {
	b := make([]byte, unix.SizeofIfInfomsg+unix.SizeofRtAttr)
	return append(append(b, name...), 0)
}

func TestMatters(t *testing.T) {
	route := make([]byte, unix.SizeofRtMsg)
	ours := make([]byte, unix.SizeofRtMsg)
	ours[5] = byte(routeProtocol)
	for _, tc := range []struct {
		name   string
		notice []byte
		want   bool
	}{
		{"a route", notice(unix.RTM_NEWROUTE, route), true}, {"one of ours", notice(unix.RTM_NEWROUTE, ours), false},
		{"one of ours that is removed", notice(unix.RTM_DELROUTE, ours), true},
		{"an uplink", notice(unix.RTM_NEWLINK, link("eth0")), true}, {"the loopback", notice(unix.RTM_NEWLINK, link("lo")), false},
		{"a Pod's link", notice(unix.RTM_NEWLINK, link("edv0123456789a")), false}, {"a container's", notice(unix.RTM_DELLINK, link("veth1")), false},
		{"one that begins like the loopback", notice(unix.RTM_NEWLINK, link("lora0")), true},
	} {
		if got := matters(tc.notice); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func FuzzMatters(f *testing.F) {
	f.Add(notice(unix.RTM_NEWLINK, link("eth0")))
	f.Add(notice(unix.RTM_NEWROUTE, nil))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(_ *testing.T, b []byte) { matters(b) })
}
