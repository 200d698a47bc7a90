package main

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// routeKlog makes what upstream's packages log ours, as debug messages: they
// speak to their own developers, and edged tells the operator itself.
func routeKlog(log *slog.Logger) { klog.SetSlogLogger(slog.New(demoted{log.Handler()})) }

type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	if !d.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil // klog asks Enabled for some messages only
	}
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
