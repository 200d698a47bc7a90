package volume

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
)

func configMapProjection(s *corev1.ConfigMapVolumeSource) *corev1.ConfigMapProjection {
	return &corev1.ConfigMapProjection{LocalObjectReference: s.LocalObjectReference, Items: s.Items, Optional: s.Optional}
}

func secretProjection(s *corev1.SecretVolumeSource) *corev1.SecretProjection {
	return &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: s.SecretName}, Items: s.Items, Optional: s.Optional}
}

func isTrue(b *bool) bool { return b != nil && *b }

func (m *Manager) configMap(ns string, s *corev1.ConfigMapProjection, def fs.FileMode, p payload) error {
	cm, ok := m.cfg.Objects.ConfigMap(ns, s.Name)
	if !ok {
		if isTrue(s.Optional) {
			return nil
		}
		return fmt.Errorf("configmap %q not found", s.Name)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return items(data, s.Items, def, isTrue(s.Optional), "configmap references non-existent config key: %s", p)
}

func (m *Manager) secret(ns string, s *corev1.SecretProjection, def fs.FileMode, p payload) error {
	sec, ok := m.cfg.Objects.Secret(ns, s.Name)
	if !ok {
		if isTrue(s.Optional) {
			return nil
		}
		return fmt.Errorf("secret %q not found", s.Name)
	}
	return items(sec.Data, s.Items, def, isTrue(s.Optional), "references non-existent secret key: %s", p)
}

// items adds the chosen keys to p, or all of them if none is chosen.
func items(data map[string][]byte, keys []corev1.KeyToPath, def fs.FileMode, optional bool, missing string, p payload) error {
	if len(keys) == 0 {
		for k, v := range data {
			p[k] = file{data: v, mode: def}
		}
		return nil
	}
	for _, k := range keys {
		v, ok := data[k.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf(missing, k.Key)
		}
		fm := def
		if k.Mode != nil {
			fm = mode(k.Mode)
		}
		name, err := clean(k.Path)
		if err != nil {
			return err
		}
		p[name] = file{data: v, mode: fm}
	}
	return nil
}

// clean refuses paths that validation should have refused.
func clean(name string) (string, error) {
	c := path.Clean(name)
	if path.IsAbs(c) || c == "." || c == ".." || strings.HasPrefix(c, "..") {
		return "", fmt.Errorf("invalid path %q in a volume", name)
	}
	return c, nil
}

func (m *Manager) downward(pod *corev1.Pod, files []corev1.DownwardAPIVolumeFile, def fs.FileMode, p payload) error {
	for _, f := range files {
		var value string
		var err error
		switch {
		case f.FieldRef != nil:
			value, err = Field(pod, f.FieldRef.FieldPath)
		case f.ResourceFieldRef != nil:
			c := findContainer(pod, f.ResourceFieldRef.ContainerName)
			if c == nil {
				return fmt.Errorf("container %s not found", f.ResourceFieldRef.ContainerName)
			}
			value, err = Resource(c, f.ResourceFieldRef, m.cfg.Objects.Allocatable())
		}
		if err != nil {
			return err
		}
		fm := def
		if f.Mode != nil {
			fm = mode(f.Mode)
		}
		name, err := clean(f.Path)
		if err != nil {
			return err
		}
		p[name] = file{data: []byte(value), mode: fm}
	}
	return nil
}

func (m *Manager) projected(ctx context.Context, pod *corev1.Pod, volume string, s *corev1.ProjectedVolumeSource, dir string) (p payload, again time.Time, err error) {
	p = payload{}
	def := mode(s.DefaultMode)
	for i, src := range s.Sources {
		var next time.Time
		switch {
		case src.ConfigMap != nil:
			err = m.configMap(pod.Namespace, src.ConfigMap, def, p)
		case src.Secret != nil:
			err = m.secret(pod.Namespace, src.Secret, def, p)
		case src.DownwardAPI != nil:
			err = m.downward(pod, src.DownwardAPI.Items, def, p)
		case src.ServiceAccountToken != nil:
			next, err = m.token(ctx, pod, src.ServiceAccountToken, def, dir, p)
		case src.PodCertificate != nil:
			next, err = m.podCertificate(ctx, pod, volume, i, src.PodCertificate, def, p)
		case src.ClusterTrustBundle != nil:
			err = m.trustBundle(pod, src.ClusterTrustBundle, def, p)
		default:
			err = errors.New("unsupported projected volume source")
		}
		if err != nil {
			return nil, again, err
		}
		if !next.IsZero() && (again.IsZero() || next.Before(again)) {
			again = next
		}
	}
	return p, again, nil
}

// token adds a ServiceAccount token: the one that is there, or a new one when
// that has less than a fifth of its life left. It returns when to look again.
func (m *Manager) token(ctx context.Context, pod *corev1.Pod, s *corev1.ServiceAccountTokenProjection, def fs.FileMode, dir string, p payload) (time.Time, error) {
	name, err := clean(s.Path)
	if err != nil {
		return time.Time{}, err
	}
	fm, uid := tokenAccess(pod, def)
	if old, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
		if renew, ok := renewAt(string(old)); ok && m.cfg.Now().Before(renew) {
			p[name] = file{data: old, mode: fm, uid: uid}
			return renew, nil
		}
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: s.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if s.Audience != "" {
		req.Spec.Audiences = []string{s.Audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	resp, err := m.cfg.Tokens.RequestToken(ctx, pod.Namespace, account, req)
	if err != nil {
		return time.Time{}, fmt.Errorf("failed to fetch token: %w", err)
	}
	p[name] = file{data: []byte(resp.Status.Token), mode: fm, uid: uid}
	renew, _ := renewAt(resp.Status.Token)
	return renew, nil
}

// tokenAccess lets nobody but the Pod read its token, as the kubelet does (and so it
// does with trust bundles and certificates): it is of the user that all its containers run as, if that is said, or of its fsGroup.
func tokenAccess(pod *corev1.Pod, def fs.FileMode) (fs.FileMode, *int64) {
	uid := onlyUser(pod)
	if sc := pod.Spec.SecurityContext; uid != nil || sc != nil && sc.FSGroup != nil {
		return 0o600, uid
	}
	return def, nil
}

// onlyUser is the user that every container of the Pod says that it runs as; nil if
// there is no such one (volumeutil.FsUserFrom).
func onlyUser(pod *corev1.Pod) *int64 {
	var all []*corev1.SecurityContext
	for i := range pod.Spec.InitContainers {
		all = append(all, pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		all = append(all, pod.Spec.Containers[i].SecurityContext)
	}
	for i := range pod.Spec.EphemeralContainers {
		all = append(all, pod.Spec.EphemeralContainers[i].SecurityContext)
	}
	var only *int64
	for _, sc := range all {
		var uid *int64
		if pod.Spec.SecurityContext != nil {
			uid = pod.Spec.SecurityContext.RunAsUser
		}
		if sc != nil && sc.RunAsUser != nil {
			uid = sc.RunAsUser
		}
		if uid == nil || only != nil && *only != *uid {
			return nil
		}
		only = uid
	}
	return only
}

// renewAt reads from a JSON web token when four fifths of its life are over.
// edged made it or fetched it from an API server: its signature is not at stake.
func renewAt(token string) (time.Time, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Exp int64 `json:"exp"`
		Iat int64 `json:"iat"`
		// WarnAfter is when a token of extended life should be renewed.
		Kubernetes struct {
			WarnAfter int64 `json:"warnafter"`
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(data, &claims); err != nil || claims.Exp <= claims.Iat {
		return time.Time{}, false
	}
	end := claims.Exp
	if w := claims.Kubernetes.WarnAfter; w > 0 {
		end = w
	}
	return time.Unix(claims.Iat+(end-claims.Iat)*4/5, 0), true
}
