package podlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// followEvery is how often a followed log is looked at; only while somebody
// follows it.
const followEvery = 100 * time.Millisecond

// Options are those of a request for a log.
type Options struct {
	Follow     bool
	Timestamps bool
	Since      time.Time // zero: from the beginning
	Tail       int64     // lines; -1 for all
	LimitBytes int64     // 0: no limit
	Stream     string    // "", "stdout" or "stderr"
	// Running tells whether more may come; it ends Follow.
	Running func() bool
}

// errLimit ends a Read whose limit is reached.
var errLimit = errors.New("limit reached")

// Read writes the log at path, with its rotated files, to w.
func Read(ctx context.Context, path string, o Options, w io.Writer) error {
	files, err := Rotated(path)
	if err != nil {
		return err
	}
	files = append(files, path)
	r := &reader{o: o, w: w, left: o.LimitBytes}
	if o.Tail >= 0 {
		if files, r.skip, err = tail(files, o); err != nil {
			return err
		}
	}
	for i, file := range files {
		last := i == len(files)-1
		if err := r.file(ctx, file, last && o.Follow); err != nil {
			if errors.Is(err, errLimit) || ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	return nil
}

// tail finds the file and the offset in it where the last o.Tail lines begin.
func tail(files []string, o Options) ([]string, int64, error) {
	left := o.Tail
	for i := len(files) - 1; i >= 0; i-- {
		at := int64(-1)
		err := backwards(files[i], func(b []byte, end int64) bool {
			if l, ok := parseLine(b); ok && !l.partial && (o.Stream == "" || l.stream == o.Stream) {
				if left == 0 {
					at = end
					return false
				}
				left--
			}
			return true
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, fmt.Errorf("read a log: %w", err)
		}
		if at >= 0 {
			return files[i:], at, nil
		}
	}
	return files, 0, nil
}

// tailBlock is what is read of a log at a time from its end: many lines, and little of
// a device's memory.
const tailBlock = 64 << 10

// backwards visits the lines of a file, with the offset of their ends, from the last
// one until visit returns false.
func backwards(path string, visit func(line []byte, end int64) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var buf []byte // the file from off on, as far as it was not visited
	for off := fi.Size(); ; {
		for len(buf) > 0 {
			start := bytes.LastIndexByte(buf[:len(buf)-1], '\n') + 1
			if start == 0 && off > 0 {
				break // it may begin before off
			}
			if !visit(buf[start:], off+int64(len(buf))) {
				return nil
			}
			buf = buf[:start]
		}
		if off == 0 {
			return nil
		}
		n := min(off, tailBlock)
		more := make([]byte, int(n)+len(buf))
		if _, err := f.ReadAt(more[:n], off-n); err != nil {
			return err
		}
		copy(more[n:], buf)
		buf, off = more, off-n
	}
}

type line struct {
	at      time.Time
	stamp   []byte
	stream  string
	partial bool
	text    []byte // with its newline, unless partial
}

// parseLine reads a line of a log; what is not one, such as a line torn by a
// power cut, is left out by all readers.
func parseLine(b []byte) (l line, ok bool) {
	stamp, rest, ok1 := bytes.Cut(b, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 || len(text) == 0 || text[len(text)-1] != '\n' {
		return l, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return l, false
	}
	l = line{at: at, stamp: stamp, stream: string(stream), partial: string(tag) == "P", text: text}
	if l.partial {
		l.text = text[:len(text)-1]
	}
	return l, true
}

type reader struct {
	o    Options
	w    io.Writer
	skip int64 // in the first file
	left int64 // of the limit, when there is one
	mid  bool  // the last line written was a part
}

// file copies one file; with follow it goes on as the file grows, and into the
// one that replaces it when it is rotated.
func (r *reader) file(ctx context.Context, path string, follow bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open a log: %w", err)
	}
	defer func() { f.Close() }()
	if _, err := f.Seek(r.skip, io.SeekStart); err != nil {
		return err
	}
	r.skip = 0
	br := bufio.NewReaderSize(f, 16<<10)
	var part []byte
	for {
		b, err := br.ReadSlice('\n')
		if err == nil && len(part) == 0 {
			if err := r.line(b); err != nil {
				return err
			}
			continue
		}
		part = append(part, b...)
		if err == nil {
			err = r.line(part)
			part = part[:0]
			if err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !follow {
			return nil
		}
		running := r.o.Running == nil || r.o.Running()
		if other, err := replaced(f, path); err == nil && other {
			// Rotated: everything of the old file has been read.
			next, err := os.Open(path)
			if err != nil {
				return err
			}
			f.Close()
			f = next
			br.Reset(f)
			continue
		}
		if !running {
			// What came between the last read and the end.
			if n, _ := br.Peek(1); len(n) == 0 {
				return nil
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// replaced reports whether path is another file than f.
func replaced(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return !os.SameFile(a, b), nil
}

func (r *reader) line(b []byte) error {
	l, ok := parseLine(b)
	if !ok || r.o.Stream != "" && l.stream != r.o.Stream || l.at.Before(r.o.Since) {
		return nil
	}
	text := l.text
	if r.o.Timestamps && !r.mid {
		text = append(append(append(make([]byte, 0, len(l.stamp)+1+len(text)), l.stamp...), ' '), text...)
	}
	r.mid = l.partial
	if r.o.LimitBytes > 0 {
		if int64(len(text)) > r.left {
			text = text[:r.left]
		}
		r.left -= int64(len(text))
	}
	if _, err := r.w.Write(text); err != nil {
		return fmt.Errorf("send a log: %w", err)
	}
	if r.o.LimitBytes > 0 && r.left == 0 {
		return errLimit
	}
	return nil
}

// LastLines returns the end of the log at path: at most lines lines and bytes
// bytes. It is the termination message of a container that wrote none.
func LastLines(path string, lines, limit int64) string {
	var b bytes.Buffer
	if err := Read(context.Background(), path, Options{Tail: lines}, &b); err != nil {
		return ""
	}
	if out := b.Bytes(); int64(len(out)) > limit {
		return string(out[int64(len(out))-limit:])
	}
	return b.String()
}
