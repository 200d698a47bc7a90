package main

import (
	"context"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"
)

// keeper is the task service with two habits: it holds a reader of each
// container's output until the container is deleted, and gives memory back after
// a burst of requests.
type keeper struct {
	taskapi.TTRPCTaskService

	quiet *time.Timer

	mu      sync.Mutex
	readers map[string][]*os.File // container id -> held ends
}

func newKeeper(tasks taskapi.TTRPCTaskService) *keeper {
	return &keeper{
		TTRPCTaskService: tasks,
		quiet:            time.AfterFunc(quietPeriod, debug.FreeOSMemory),
		readers:          map[string][]*os.File{},
	}
}

func (k *keeper) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	defer k.quiet.Reset(quietPeriod)
	readers, err := openReaders(r.Stdout, r.Stderr)
	if err != nil {
		return nil, err
	}
	resp, err := k.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		closeAll(readers)
		return nil, err
	}
	k.mu.Lock()
	k.readers[r.ID] = readers
	k.mu.Unlock()
	return resp, nil
}

func (k *keeper) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	defer k.quiet.Reset(quietPeriod)
	resp, err := k.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		k.mu.Lock()
		readers := k.readers[r.ID]
		delete(k.readers, r.ID)
		k.mu.Unlock()
		closeAll(readers)
	}
	return resp, err
}

func (k *keeper) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	defer k.quiet.Reset(quietPeriod)
	return k.TTRPCTaskService.Exec(ctx, r)
}

// openReaders opens the reading ends of those paths that are fifos. Nobody reads
// from them here: an open end is what keeps the bytes in a fifo alive between the
// exit of the writer and the return of the reader.
func openReaders(paths ...string) (files []*os.File, err error) {
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a read-only end has nothing left to say
	}
}
