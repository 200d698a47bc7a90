package agent_test

import (
	"encoding/base64"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
	"edged/apiserver/registry/registrytest"
	"edged/runtime/agent"
	"edged/runtime/engine"
)

// TestPullAuth: both kinds of Secrets, in the Pod's order, by the registry's host
// however it is written and the beginning of the image's path, all that fit; what
// cannot be read is passed over.
func TestPullAuth(t *testing.T) {
	reg := registrytest.New(t)
	secrets := registry.For[*corev1.Secret](reg)
	for name, s := range map[string]*corev1.Secret{
		"new": {Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(
			`{"auths":{"https://index.docker.io/v1/":{"username":"hub","password":"h"},"reg.example:5000":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("u:p:q")) + `"}}}`)}},
		"old": {Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"http://old.example":{"username":"o","password":"x"},"reg.example:5000":{"username":"second"}}`)}},
		"paths": {Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(
			`{"auths":{"reg.example:5000/team":{"username":"team"},"*.example:5000":{"username":"any"},"reg.example:5000/other":{"username":"no"}}}`)}},
		"other": {Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"x": []byte("y")}},
	} {
		s.ObjectMeta = metav1.ObjectMeta{Namespace: "ns", Name: name}
		if _, err := secrets.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(names ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}
		for _, n := range names {
			p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: n})
		}
		return p
	}
	o := agent.NewObjects(reg, "n")
	auth, key := o.PullAuth(pod("missing", "other", "new", "old", "paths"), "reg.example:5000/team/app:1")
	if auth == nil {
		t.Fatal("no credentials")
	}
	for host, want := range map[string][]engine.Auth{
		"docker.io":            {{Username: "hub", Password: "h"}},
		"registry-1.docker.io": {{Username: "hub", Password: "h"}},
		"reg.example:5000":     {{Username: "u", Password: "p:q"}, {Username: "second"}, {Username: "team"}, {Username: "any"}},
		"old.example":          {{Username: "o", Password: "x"}},
		"mirror.example:5000":  {{Username: "any"}},
		"[::1]:5000":           nil,
		"reg.example":          nil,
		"evil.example":         nil,
	} {
		if got := auth(host); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", host, got, want)
		}
	}
	if auth, key := o.PullAuth(pod("missing"), "i"); auth != nil || key != "" {
		t.Errorf("a Secret that is missing gives %q", key)
	}
	if _, other := o.PullAuth(pod("old"), "i"); other == key || key == "" {
		t.Errorf("different credentials have the key %q", key)
	}
}
