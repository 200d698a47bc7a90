package peer

import (
	"maps"
	"net"
	"slices"
	"sync/atomic"
)

// Traffic is what went to and came from another member since the start.
type Traffic struct {
	ID                 uint64
	Sent, Received     uint64 // bytes
	SendFailures, Lost uint64 // messages that found no room, connections that ended
	Connected          bool
}

// traffic counts for one link.
type traffic struct{ sent, received, failures, lost atomic.Uint64 }

// Traffic returns it by member, in the order of their ids.
func (t *Transport) Traffic() []Traffic {
	t.mu.Lock()
	links := maps.Clone(t.links)
	t.mu.Unlock()
	out := make([]Traffic, 0, len(links))
	for _, id := range slices.Sorted(maps.Keys(links)) {
		l := links[id]
		l.mu.Lock()
		connected := l.connected
		l.mu.Unlock()
		out = append(out, Traffic{
			ID: id, Sent: l.traffic.sent.Load(), Received: l.traffic.received.Load(),
			SendFailures: l.traffic.failures.Load(), Lost: l.traffic.lost.Load(), Connected: connected,
		})
	}
	return out
}

// counted is a connection to or from a member.
type counted struct {
	net.Conn
	*traffic
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(uint64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(uint64(n))
	return n, err
}

// count counts what goes over conn, if id is a member that this one knows.
func (t *Transport) count(conn net.Conn, id uint64) net.Conn {
	if l := t.link(id); l != nil {
		return counted{conn, &l.traffic}
	}
	return conn
}
