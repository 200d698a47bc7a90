package agent

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	pathpkg "path"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"

	"edged/apiserver/registry"
	"edged/runtime/engine"
)

// Objects reads what Pods are made from out of this device's replica. It is
// runtime/pod's Objects.
type Objects struct {
	configMaps registry.Client[*corev1.ConfigMap]
	secrets    registry.Client[*corev1.Secret]
	services   registry.Client[*corev1.Service]
	nodes      registry.Client[*corev1.Node]
	bundles    registry.Client[*certificatesv1.ClusterTrustBundle]
	requests   registry.Client[*certificatesv1.PodCertificateRequest]
	accounts   registry.Client[*corev1.ServiceAccount]
	claims     registry.Client[*corev1.PersistentVolumeClaim]
	volumes    registry.Client[*corev1.PersistentVolume]
	node       string
}

// NewObjects reads from r, for Pods on node.
func NewObjects(r *registry.Registry, node string) *Objects {
	return &Objects{
		registry.For[*corev1.ConfigMap](r), registry.For[*corev1.Secret](r), registry.For[*corev1.Service](r),
		registry.For[*corev1.Node](r), registry.For[*certificatesv1.ClusterTrustBundle](r),
		registry.For[*certificatesv1.PodCertificateRequest](r), registry.For[*corev1.ServiceAccount](r),
		registry.For[*corev1.PersistentVolumeClaim](r), registry.For[*corev1.PersistentVolume](r), node,
	}
}

// ConfigMap returns a ConfigMap; it is shared.
func (o *Objects) ConfigMap(ns, name string) (*corev1.ConfigMap, bool) {
	return o.configMaps.Get(ns, name)
}

// Secret returns a Secret; it is shared.
func (o *Objects) Secret(ns, name string) (*corev1.Secret, bool) { return o.secrets.Get(ns, name) }

// ClusterTrustBundle returns a ClusterTrustBundle; it is shared.
func (o *Objects) ClusterTrustBundle(name string) (*certificatesv1.ClusterTrustBundle, bool) {
	return o.bundles.Get("", name)
}

// ClusterTrustBundles lists all; they are shared.
func (o *Objects) ClusterTrustBundles() []*certificatesv1.ClusterTrustBundle {
	return o.bundles.List("")
}

// PodCertificateRequest returns a PodCertificateRequest; it is shared.
func (o *Objects) PodCertificateRequest(ns, name string) (*certificatesv1.PodCertificateRequest, bool) {
	return o.requests.Get(ns, name)
}

// ServiceAccount returns a ServiceAccount; it is shared.
func (o *Objects) ServiceAccount(ns, name string) (*corev1.ServiceAccount, bool) {
	return o.accounts.Get(ns, name)
}

// PersistentVolumeClaim returns a claim; it is shared.
func (o *Objects) PersistentVolumeClaim(ns, name string) (*corev1.PersistentVolumeClaim, bool) {
	return o.claims.Get(ns, name)
}

// PersistentVolume returns a volume; it is shared.
func (o *Objects) PersistentVolume(name string) (*corev1.PersistentVolume, bool) {
	return o.volumes.Get("", name)
}

// Node returns this device's Node; it is shared.
func (o *Objects) Node() (*corev1.Node, bool) { return o.nodes.Get("", o.node) }

// Services lists a namespace's Services; they are shared.
func (o *Objects) Services(ns string) []*corev1.Service { return o.services.List(ns) }

// Allocatable is what this device gives to Pods.
func (o *Objects) Allocatable() corev1.ResourceList {
	n, ok := o.nodes.Get("", o.node)
	if !ok {
		return nil
	}
	return n.Status.Allocatable
}

// PullAuth returns the credentials of the Pod's imagePullSecrets for an image, and a
// key that is equal for equal credentials. Several may fit a registry: they are to be
// tried in turn.
func (o *Objects) PullAuth(p *corev1.Pod, image string) (func(host string) []engine.Auth, string) {
	var auths []map[string]dockerAuth
	var key strings.Builder
	for _, ref := range p.Spec.ImagePullSecrets {
		s, ok := o.secrets.Get(p.Namespace, ref.Name)
		if !ok {
			continue
		}
		var a map[string]dockerAuth
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			var c struct{ Auths map[string]dockerAuth }
			if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &c) != nil {
				continue
			}
			a = c.Auths
		case corev1.SecretTypeDockercfg:
			if json.Unmarshal(s.Data[corev1.DockerConfigKey], &a) != nil {
				continue
			}
		}
		auths = append(auths, a)
		key.WriteString(string(s.UID) + "@" + s.ResourceVersion + " ")
	}
	if len(auths) == 0 {
		return nil, ""
	}
	return func(host string) []engine.Auth { return credentials(auths, host, image) }, key.String()
}

// credentials are those for a host from which the image comes: of each Secret in
// its turn the more specific first, as upstream has them
// (pkg/credentialprovider/keyring.go).
func credentials(auths []map[string]dockerAuth, host, image string) (out []engine.Auth) {
	host = registryHost(host)
	path := ""
	if name, err := engine.NormalizeImageName(image); err == nil && registryHost(name) == host {
		_, path, _ = strings.Cut(name, "/")
	}
	for _, a := range auths {
		for _, registry := range slices.Backward(slices.Sorted(maps.Keys(a))) {
			if d := a[registry].auth(); covers(registry, host, path) && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

// covers says whether what a Secret names a registry, perhaps with wildcards and
// with the beginning of a path, is for an image at host and path.
func covers(registry, host, path string) bool {
	want := strings.Split(registryHost(registry), ".")
	have := strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		same, err := pathpkg.Match(want[i], have[i])
		if want[i] != have[i] && (err != nil || !same) {
			return false
		}
	}
	registry = strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
	_, below, _ := strings.Cut(registry, "/")
	below = strings.TrimSuffix(below, "/")
	if below == "v1" || below == "v2" { // an API's address, as docker login wrote it
		return true
	}
	return strings.HasPrefix(path, below)
}

type dockerAuth struct {
	Username, Password, Auth string
	IdentityToken            string
}

func (d dockerAuth) auth() engine.Auth {
	if d.Username == "" && d.Auth != "" {
		if data, err := base64.StdEncoding.DecodeString(d.Auth); err == nil {
			d.Username, d.Password, _ = strings.Cut(string(data), ":")
		}
	}
	return engine.Auth{Username: d.Username, Password: d.Password, IdentityToken: d.IdentityToken}
}

// registryHost is the host of a registry as people name it; Docker Hub has three.
func registryHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	host, _, _ := strings.Cut(s, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// usesConfigMap tells whether a change of the ConfigMap concerns the Pod.
func usesConfigMap(p *corev1.Pod, name string) bool {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil && v.ConfigMap.Name == name {
			return true
		}
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ConfigMap != nil && s.ConfigMap.Name == name
		}) {
			return true
		}
	}
	return envUses(p, func(e *corev1.EnvVarSource) bool {
		return e.ConfigMapKeyRef != nil && e.ConfigMapKeyRef.Name == name
	}, func(e corev1.EnvFromSource) bool { return e.ConfigMapRef != nil && e.ConfigMapRef.Name == name })
}

// usesSecret tells whether a change of the Secret concerns the Pod.
func usesSecret(p *corev1.Pod, name string) bool {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Secret != nil && v.Secret.SecretName == name {
			return true
		}
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.Secret != nil && s.Secret.Name == name
		}) {
			return true
		}
	}
	return envUses(p, func(e *corev1.EnvVarSource) bool {
		return e.SecretKeyRef != nil && e.SecretKeyRef.Name == name
	}, func(e corev1.EnvFromSource) bool { return e.SecretRef != nil && e.SecretRef.Name == name })
}

// usesTrustBundle tells whether a change of the ClusterTrustBundle may concern the
// Pod. Labels do not matter: by a change of them it may have been chosen before.
func usesTrustBundle(p *corev1.Pod, b *certificatesv1.ClusterTrustBundle) bool {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			c := s.ClusterTrustBundle
			return c != nil && (c.Name != nil && *c.Name == b.Name || c.SignerName != nil && *c.SignerName == b.Spec.SignerName)
		}) {
			return true
		}
	}
	return false
}

func envUses(p *corev1.Pod, from func(*corev1.EnvVarSource) bool, all func(corev1.EnvFromSource) bool) bool {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for j := range list[i].Env {
				if f := list[i].Env[j].ValueFrom; f != nil && from(f) {
					return true
				}
			}
			if slices.ContainsFunc(list[i].EnvFrom, all) {
				return true
			}
		}
	}
	return false
}
