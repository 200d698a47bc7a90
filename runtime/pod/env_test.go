package pod

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is the cluster's state that containers are made from.
type world struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string][]byte
	services   map[string][]*corev1.Service
}

func (w world) ConfigMap(ns, name string) (*corev1.ConfigMap, bool) {
	data, ok := w.configMaps[ns+"/"+name]
	return &corev1.ConfigMap{Data: data}, ok
}
func (w world) Secret(ns, name string) (*corev1.Secret, bool) {
	data, ok := w.secrets[ns+"/"+name]
	return &corev1.Secret{Data: data}, ok
}
func (w world) Services(ns string) []*corev1.Service { return w.services[ns] }
func (w world) Allocatable() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("512Mi")}
}

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func TestEnvironment(t *testing.T) {
	w := world{
		configMaps: map[string]map[string]string{"ns/cm": {"b": "2", "a-x": "1", "": "no", "c=d": "no"}},
		secrets:    map[string]map[string][]byte{"ns/s": {"k": []byte("secret")}},
	}
	pod := aPod(corev1.RestartPolicyAlways, func(p *corev1.Pod) {
		p.Labels = map[string]string{"l": "v"}
		p.Spec.ServiceAccountName, p.Spec.NodeName = "sa", "n1"
	})
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	yes := true
	name := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	for _, tc := range []struct {
		name string
		c    corev1.Container
		want string // or ! and the error
	}{
		{"values in order, references to earlier ones", corev1.Container{Env: []corev1.EnvVar{
			{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)-$(C)-$$(A)"}, {Name: "C", Value: "3"}, {Name: "A", Value: "$(B)"},
		}}, "A=1-$(C)-$(A) B=1-$(C)-$(A) C=3"},
		{"envFrom, sorted, with a prefix, keys that no name can be left out", corev1.Container{
			EnvFrom: []corev1.EnvFromSource{{Prefix: "p-", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: name("cm")}}, {SecretRef: &corev1.SecretEnvSource{LocalObjectReference: name("s")}}},
			Env:     []corev1.EnvVar{{Name: "p-b", Value: "mine"}, {Name: "R", Value: "$(k)"}},
		}, "p-=no p-a-x=1 p-b=mine k=secret R=secret"},
		{"fields", corev1.Container{Env: []corev1.EnvVar{
			{Name: "N", ValueFrom: field("metadata.name")}, {Name: "NS", ValueFrom: field("metadata.namespace")}, {Name: "U", ValueFrom: field("metadata.uid")},
			{Name: "L", ValueFrom: field("metadata.labels['l']")}, {Name: "NN", ValueFrom: field("spec.nodeName")}, {Name: "SA", ValueFrom: field("spec.serviceAccountName")},
			{Name: "H", ValueFrom: field("status.hostIP")}, {Name: "IP", ValueFrom: field("status.podIP")}, {Name: "IPS", ValueFrom: field("status.podIPs")},
		}}, "N=p NS=ns U=u1 L=v NN=n1 SA=sa H=10.0.0.1 IP=10.42.0.2 IPS=10.42.0.2,fd00::2"},
		{"resources, allocatable where there is no limit", corev1.Container{
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}},
			Env: []corev1.EnvVar{
				{Name: "M", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
				{Name: "C", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
			},
		}, "M=64 C=2"},
		{"keys", corev1.Container{Env: []corev1.EnvVar{
			{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: name("cm"), Key: "b"}}},
			{Name: "B", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: name("s"), Key: "k"}}},
			{Name: "C", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: name("s"), Key: "none", Optional: &yes}}},
			{Name: "D", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: name("none"), Key: "b", Optional: &yes}}},
		}}, "A=2 B=secret"},
		{"no ConfigMap", corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: name("none")}}}}, `!configmap "none" not found`},
		{"optional", corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: name("none"), Optional: &yes}}}}, ""},
		{"no key", corev1.Container{Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: name("s"), Key: "none"}}}}}, "!couldn't find key none in Secret ns/s"},
	} {
		v, err := environment(pod, &tc.c, w, []string{"10.42.0.2", "fd00::2"}, "10.0.0.1")
		if want, bad := strings.CutPrefix(tc.want, "!"); bad {
			var config configError
			if err == nil || err.Error() != want || !errors.As(err, &config) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := strings.Join(v.list(), " "); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

// TestServiceVariables: docker's link variables; a container's own win.
func TestServiceVariables(t *testing.T) {
	w := world{services: map[string][]*corev1.Service{
		"ns":      {service("my-svc", "10.43.0.9", corev1.ServicePort{Name: "web-ui", Port: 80}, corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP}), service("headless", "None", corev1.ServicePort{Port: 1})},
		"default": {service("kubernetes", "10.43.0.1", corev1.ServicePort{Name: "https", Port: 443}), service("other", "10.43.0.8", corev1.ServicePort{Port: 1})},
	}}
	c := &corev1.Container{Env: []corev1.EnvVar{{Name: "MY_SVC_PORT", Value: "mine"}, {Name: "X", Value: "$(MY_SVC_SERVICE_HOST)"}}}
	v, err := environment(aPod(corev1.RestartPolicyAlways), c, w, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"MY_SVC_PORT=mine", "X=10.43.0.9", "MY_SVC_SERVICE_HOST=10.43.0.9", "MY_SVC_SERVICE_PORT=80", "MY_SVC_SERVICE_PORT_WEB_UI=80",
		"MY_SVC_PORT_80_TCP=tcp://10.43.0.9:80", "MY_SVC_PORT_80_TCP_PROTO=tcp", "MY_SVC_PORT_80_TCP_PORT=80", "MY_SVC_PORT_80_TCP_ADDR=10.43.0.9",
		"MY_SVC_PORT_53_UDP=udp://10.43.0.9:53", "KUBERNETES_SERVICE_HOST=10.43.0.1", "KUBERNETES_PORT=tcp://10.43.0.1:443",
	}
	got := v.list()
	for _, x := range want {
		if !slices.Contains(got, x) {
			t.Errorf("no %s in %v", x, got)
		}
	}
	if strings.Contains(strings.Join(got, " "), "HEADLESS") || strings.Contains(strings.Join(got, " "), "OTHER") {
		t.Errorf("too much: %v", got)
	}
	no := false
	v, err = environment(aPod(corev1.RestartPolicyAlways, func(p *corev1.Pod) { p.Spec.EnableServiceLinks = &no }), &corev1.Container{}, w, nil, "")
	if err != nil || !slices.Contains(v.list(), "KUBERNETES_SERVICE_PORT=443") || len(v.values) != 8 {
		t.Errorf("without links: %v %v", err, v.list())
	}
}

// TestExpand is the grammar of the API's documentation of Container.args.
func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(A)y": "x1y", "$$(A)": "$(A)", "$$$(A)": "$1", "$(NONE)": "$(NONE)", "$(B)": "$(A)", "$A": "$A", "$": "$",
		"$(A": "$(A", "$(A))": "1)", "$($(A))": "$($(A))", "a$": "a$", "": "", "$()": "$()", "$$": "$",
	} {
		if got := expand(in, func(n string) (string, bool) { v, ok := vars[n]; return v, ok }); got != want {
			t.Errorf("%q: %q, not %q", in, got, want)
		}
	}
}
