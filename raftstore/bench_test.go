package raftstore

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"edged/raftstore/vfs"
)

// BenchmarkPut measures puts of many clients at once; their batches share syncs.
func BenchmarkPut(b *testing.B) {
	for _, clients := range []int{1, 1000} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			s, err := Open(b.Context(), Config{Dir: b.TempDir(), Quota: 8 << 30})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			value := make([]byte, 256)
			var n atomic.Int64
			b.SetParallelism(clients)
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					key := fmt.Appendf(nil, "%08d", n.Add(1)%100_000)
					if _, err := s.Put(b.Context(), &pb.PutRequest{Key: key, Value: value}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// slowDisk is one of which each sync takes 20 ms longer.
type slowDisk struct{ vfs.OS }

func (d slowDisk) Open(op, path string, create bool) (vfs.File, error) {
	f, err := d.OS.Open(op, path, create)
	return slowFile{f}, err
}

type slowFile struct{ vfs.File }

func (f slowFile) Sync(op string, dataOnly bool) error {
	time.Sleep(20 * time.Millisecond)
	return f.File.Sync(op, dataOnly)
}

// BenchmarkPutSlowDisk is of 1000 clients. The fewer syncs a put waits for, the
// better.
func BenchmarkPutSlowDisk(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir(), Quota: 8 << 30, files: slowDisk{}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := make([]byte, 256)
	var n atomic.Int64
	b.SetParallelism(1000)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			key := fmt.Appendf(nil, "%08d", n.Add(1)%100_000)
			if _, err := s.Put(b.Context(), &pb.PutRequest{Key: key, Value: value}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
