package pod

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"edged/runtime/engine"
	"edged/runtime/podlog"
)

// Termination messages are part of the Pod's object: bounds of one, and of all of
// a Pod's; the kubelet's.
const (
	maxMessageBytes  = 4 << 10
	maxMessagesBytes = 12 << 10
)

// message is the termination message of an attempt that has ended: the end of what it
// wrote to its file or, if the container asks for it and failed, the end of its log.
func (w *Worker) message(c engine.Container) string {
	name := c.Labels[labelContainer]
	i := slices.IndexFunc(slots(w.w.pod), func(s slot) bool { return s.c.Name == name })
	if i < 0 {
		return ""
	}
	spec := slots(w.w.pod)[i].c
	limit := min(maxMessageBytes, maxMessagesBytes/len(slots(w.w.pod)))
	if text, err := lastBytes(w.terminationLog(name, attemptOf(c)), int64(limit)); err == nil && text != "" {
		return text
	}
	if spec.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && c.ExitCode != 0 {
		return podlog.LastLines(podlog.Path(w.logDir(), name, attemptOf(c)), 80, 2048)
	}
	return ""
}

// lastBytes is the end of a file, which the container may have made of any size.
func lastBytes(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, max(fi.Size()-limit, 0), limit))
	return string(data), err
}

func (w *Worker) terminationLog(container string, attempt int) string {
	return filepath.Join(w.dev.Volumes.PodRunDir(w.uid), "termination", fmt.Sprintf("%s.%d", container, attempt))
}
