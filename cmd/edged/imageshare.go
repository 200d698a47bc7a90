package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"

	"edged/apiserver/registry"
	"edged/runtime/engine"
	"edged/runtime/imageshare"
)

// registriesFile is k3s' name for it, below the data-dir or in /etc/edged.
const registriesFile = "registries.yaml"

// openShare makes the device's part in sharing images. Its handler is beside the
// kubelet API, on the same port.
func (d *device) openShare() *imageshare.Share {
	share := imageshare.New(imageshare.Config{
		NodeName: d.cfg.nodeName, Registry: d.registry, Store: d.engine, TLS: d.identity.PeerClientTLS(), Device: d.deviceOf, Logger: d.log,
	})
	d.onClose(func() error { share.Close(); return nil })
	d.shared.set(share.Handler())
	return share
}

// deviceOf tells which device makes a request, by its certificate.
func (d *device) deviceOf(r *http.Request) string {
	resp, ok, err := d.access.authn.AuthenticateRequest(r)
	if err != nil || !ok || !slices.Contains(resp.User.GetGroups(), user.NodesGroup) {
		return ""
	}
	name, _ := strings.CutPrefix(resp.User.GetName(), "system:node:")
	return name
}

// withImages serves images to other devices, by their certificates, and leaves the
// rest to next.
func (d *device) withImages(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.Handle(imageshare.Prefix, &d.shared)
	mux.Handle(imageshare.ClaimPrefix, &d.shared)
	return mux
}

// registriesPath is the registries.yaml that counts now.
func (d *device) registriesPath() string {
	own := filepath.Join(d.cfg.dataDir, registriesFile)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return filepath.Join("/etc/edged", registriesFile)
}

// copies names the other devices that have an image now.
func copies(share *imageshare.Share) func(context.Context, engine.Image) []string {
	return func(ctx context.Context, im engine.Image) []string {
		if len(im.RepoDigests) == 0 {
			return nil
		}
		return share.Copies(ctx, im.RepoDigests[0], im.Digest)
	}
}

// namedImages are the images that workloads of the cluster name, by their full
// names.
func (d *device) namedImages() map[string]bool {
	named := map[string]bool{}
	noteAll(d.registry, named, func(o *corev1.Pod) *corev1.PodSpec { return &o.Spec })
	noteAll(d.registry, named, func(o *corev1.ReplicationController) *corev1.PodSpec {
		if o.Spec.Template == nil {
			return &corev1.PodSpec{}
		}
		return &o.Spec.Template.Spec
	})
	noteAll(d.registry, named, func(o *appsv1.ReplicaSet) *corev1.PodSpec { return &o.Spec.Template.Spec })
	noteAll(d.registry, named, func(o *appsv1.Deployment) *corev1.PodSpec { return &o.Spec.Template.Spec })
	noteAll(d.registry, named, func(o *appsv1.DaemonSet) *corev1.PodSpec { return &o.Spec.Template.Spec })
	noteAll(d.registry, named, func(o *appsv1.StatefulSet) *corev1.PodSpec { return &o.Spec.Template.Spec })
	noteAll(d.registry, named, func(o *batchv1.Job) *corev1.PodSpec { return &o.Spec.Template.Spec })
	noteAll(d.registry, named, func(o *batchv1.CronJob) *corev1.PodSpec { return &o.Spec.JobTemplate.Spec.Template.Spec })
	return named
}

func noteAll[T runtime.Object](r *registry.Registry, named map[string]bool, spec func(T) *corev1.PodSpec) {
	for _, o := range registry.For[T](r).List("") {
		for _, ref := range imagesOf(spec(o)) {
			if full, err := engine.NormalizeImageName(ref); err == nil {
				named[full] = true
			}
		}
	}
}

func imagesOf(s *corev1.PodSpec) (refs []string) {
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			refs = append(refs, list[i].Image)
		}
	}
	for i := range s.Volumes {
		if v := s.Volumes[i].Image; v != nil {
			refs = append(refs, v.Reference)
		}
	}
	return refs
}
