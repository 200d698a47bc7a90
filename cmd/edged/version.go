package main

import (
	"context"
	"fmt"
	goruntime "runtime"
)

// version is set by the build (-ldflags -X); kubernetesVersion is the release
// whose API edged serves, and must equal the k8s.io/kubernetes that go.mod
// requires (version_test.go).
var version = "dev"

const kubernetesVersion = "v1.37.2"

func runVersion(_ context.Context, e env) error {
	if len(e.args) > 0 {
		return misusef("takes no arguments, got %q", e.args[0])
	}
	_, err := fmt.Fprintf(e.stdout, "edged %s (Kubernetes %s+edged, %s %s/%s)\n",
		version, kubernetesVersion, goruntime.Version(), goruntime.GOOS, goruntime.GOARCH)
	return err
}
