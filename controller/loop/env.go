package loop

import (
	"context"
	"log/slog"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/foreign"
)

// Env is what a controller gets from outside.
type Env struct {
	Registry *registry.Registry
	// Events is the recorder of whatever component; a controller takes its own
	// view with Component.
	Events *recorder.Recorder
	Logger *slog.Logger
	// Foreign is the way to the servers of aggregated APIs; nil: there are none.
	Foreign foreign.Servers
	// Now is the clock of decisions. Queues time themselves.
	Now func() time.Time
}

// Run is a controller: it works until ctx ends.
type Run func(ctx context.Context, env Env) error

// Key is the key of a namespaced object.
func Key(ns, name string) string { return ns + "/" + name }

// KeyOf is Key of an object.
func KeyOf(o metav1.Object) string { return Key(o.GetNamespace(), o.GetName()) }

// SplitKey is the reverse of Key.
func SplitKey(key string) (ns, name string) {
	ns, name, _ = strings.Cut(key, "/")
	return ns, name
}
