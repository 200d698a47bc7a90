package etcdapi

import (
	"encoding/json"
	"io"
)

// decoder reads JSON values one after the other, each of bounded size.
type decoder struct {
	dec   *json.Decoder
	limit *io.LimitedReader
	bound int64
}

func newDecoder(r io.Reader, bound int) *decoder {
	l := &io.LimitedReader{R: r, N: int64(bound) * 2}
	return &decoder{dec: json.NewDecoder(l), limit: l, bound: int64(bound) * 2}
}

func (d *decoder) next() (json.RawMessage, error) {
	d.limit.N = d.bound
	var raw json.RawMessage
	err := d.dec.Decode(&raw)
	return raw, err
}
