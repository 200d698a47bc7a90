package peer

// Tell is Call without waiting for the answer; what is told may be lost.
func (t *Transport) Tell(to uint64, method byte, body []byte) {
	if l := t.link(to); l != nil {
		t.mu.Lock()
		t.lastCall++
		id := t.lastCall
		t.mu.Unlock()
		l.put(item{kind: kindCall, payload: call{id, method, body}.encode()})
	}
}
