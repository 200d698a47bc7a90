package linknews_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"edged/internal/linknews"
	"edged/internal/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// TestWatch hears of a link that is made, by its name, and ends with its file.
func TestWatch(t *testing.T) {
	ns := netnstest.New(t)
	var f *os.File
	ns.Do(t, func() (err error) {
		f, err = linknews.Open(linknews.Links)
		return err
	})
	heard, ended := make(chan struct{}, 100), make(chan struct{})
	go func() {
		defer close(ended)
		linknews.Watch(f, func(notice []byte) bool {
			kind, body, ok := linknews.Split(notice)
			if !ok || kind != unix.RTM_NEWLINK {
				return false
			}
			name, ok := linknews.LinkName(body)
			return ok && bytes.HasPrefix(name, []byte("news0\x00"))
		}, func() { heard <- struct{}{} })
	}()
	ns.Run(t, "ip", "link", "add", "other", "type", "bridge")
	ns.Run(t, "ip", "link", "add", "news0", "type", "bridge")
	<-heard
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if _, body, ok := linknews.Split(b); ok {
			linknews.LinkName(body)
		}
	})
}
