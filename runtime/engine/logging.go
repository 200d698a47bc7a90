package engine

import (
	"io"
	"log/slog"
	"sync"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// containerd logs through one global logger of its own. The first engine of the
// process takes it over: what is worth a warning there goes to the engine's
// logger at debug level, since every failure also comes back as an error.
var adoptLog sync.Once

type logHook struct{ to *slog.Logger }

func (logHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel, logrus.FatalLevel, logrus.PanicLevel}
}

func (h logHook) Fire(entry *logrus.Entry) error {
	args := []any{"from", "containerd"}
	for k, v := range entry.Data {
		args = append(args, k, v)
	}
	h.to.Debug(entry.Message, args...)
	return nil
}

func adoptContainerdLog(to *slog.Logger) {
	adoptLog.Do(func() {
		log.L.Logger.SetOutput(io.Discard)
		log.L.Logger.AddHook(logHook{to})
	})
}
