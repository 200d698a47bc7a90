package pod

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"edged/runtime/volume"
)

// Objects are the parts of the cluster's state that containers are made from.
type Objects interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, bool)
	Secret(namespace, name string) (*corev1.Secret, bool)
	// Allocatable is what this device can give to Pods.
	Allocatable() corev1.ResourceList
	// Services that containers of a namespace are told of by variables.
	Services(namespace string) []*corev1.Service
}

// configError is a mistake in the Pod or in what it refers to: the container
// waits with reason CreateContainerConfigError until that is mended.
type configError struct{ error }

func configErrorf(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

// variables are an environment in order; a later value of a name replaces the
// earlier one in its place.
type variables struct {
	names  []string
	values map[string]string
}

func (v *variables) set(name, value string) {
	if _, ok := v.values[name]; !ok {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

func (v *variables) list() []string {
	out := make([]string, 0, len(v.names))
	for _, n := range v.names {
		out = append(out, n+"="+v.values[n])
	}
	return out
}

// environment makes a container's variables: those of Services, envFrom, env.
func environment(pod *corev1.Pod, c *corev1.Container, o Objects, podIPs []string, hostIP string) (*variables, error) {
	v := &variables{values: map[string]string{}}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	services := &variables{values: map[string]string{}}
	serviceVariables(pod.Namespace, o, links, services)
	for _, from := range c.EnvFrom {
		if err := envFrom(pod, from, o, v); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if s, ok := v.values[name]; ok {
			return s, true
		}
		s, ok := services.values[name]
		return s, ok
	}
	for i := range c.Env {
		e := &c.Env[i]
		value := expand(e.Value, lookup)
		if e.Value == "" && e.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = valueFrom(pod, c, e.ValueFrom, o, podIPs, hostIP); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		v.set(e.Name, value)
	}
	for _, n := range services.names {
		if _, ok := v.values[n]; !ok {
			v.set(n, services.values[n])
		}
	}
	return v, nil
}

func envFrom(pod *corev1.Pod, from corev1.EnvFromSource, o Objects, v *variables) error {
	var data map[string]string
	switch {
	case from.ConfigMapRef != nil:
		cm, ok := o.ConfigMap(pod.Namespace, from.ConfigMapRef.Name)
		if !ok {
			if isTrue(from.ConfigMapRef.Optional) {
				return nil
			}
			return configErrorf("configmap %q not found", from.ConfigMapRef.Name)
		}
		data = cm.Data
	case from.SecretRef != nil:
		s, ok := o.Secret(pod.Namespace, from.SecretRef.Name)
		if !ok {
			if isTrue(from.SecretRef.Optional) {
				return nil
			}
			return configErrorf("secret %q not found", from.SecretRef.Name)
		}
		data = make(map[string]string, len(s.Data))
		for k, b := range s.Data {
			data[k] = string(b)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if name := from.Prefix + k; len(validation.IsRelaxedEnvVarName(name)) == 0 {
			v.set(name, data[k])
		}
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// valueFrom resolves a reference; ok is false for an optional one to nothing.
func valueFrom(pod *corev1.Pod, c *corev1.Container, s *corev1.EnvVarSource, o Objects, podIPs []string, hostIP string) (value string, ok bool, err error) {
	switch {
	case s.FieldRef != nil:
		value, err = field(pod, s.FieldRef.FieldPath, podIPs, hostIP)
	case s.ResourceFieldRef != nil:
		of := c
		if name := s.ResourceFieldRef.ContainerName; name != "" {
			for _, sl := range slots(pod) {
				if sl.c.Name == name {
					of = sl.c
				}
			}
		}
		value, err = volume.Resource(of, s.ResourceFieldRef, o.Allocatable())
	case s.ConfigMapKeyRef != nil:
		ref := s.ConfigMapKeyRef
		cm, found := o.ConfigMap(pod.Namespace, ref.Name)
		if !found {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, configErrorf("configmap %q not found", ref.Name)
		}
		if value, found = cm.Data[ref.Key]; !found {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, configErrorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
	case s.SecretKeyRef != nil:
		ref := s.SecretKeyRef
		sec, found := o.Secret(pod.Namespace, ref.Name)
		if !found {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, configErrorf("secret %q not found", ref.Name)
		}
		b, found := sec.Data[ref.Key]
		if !found {
			if isTrue(ref.Optional) {
				return "", false, nil
			}
			return "", false, configErrorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		value = string(b)
	}
	if err != nil {
		return "", false, configError{err}
	}
	return value, true, nil
}

// field is volume.Field and the fields that only variables may have.
func field(pod *corev1.Pod, path string, podIPs []string, hostIP string) (string, error) {
	switch path {
	case "status.hostIP", "status.hostIPs":
		return hostIP, nil
	case "status.podIP":
		if len(podIPs) == 0 {
			return "", nil
		}
		return podIPs[0], nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	}
	return volume.Field(pod, path)
}

// serviceVariables are docker's link variables, for the Services of the Pod's
// namespace and for the API's own.
func serviceVariables(ns string, o Objects, links bool, v *variables) {
	list := func(from string) []*corev1.Service { return o.Services(from) }
	if links {
		for _, s := range list(ns) {
			oneService(s, v)
		}
	}
	for _, s := range list(corev1.NamespaceDefault) {
		if s.Name == "kubernetes" && (!links || ns != corev1.NamespaceDefault) {
			if _, shadowed := v.values["KUBERNETES_SERVICE_HOST"]; !shadowed {
				oneService(s, v)
			}
		}
	}
}

func oneService(s *corev1.Service, v *variables) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	v.set(name+"_SERVICE_HOST", ip)
	v.set(name+"_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.Name != "" {
			v.set(name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")), strconv.Itoa(int(p.Port)))
		}
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = "TCP"
		}
		url := fmt.Sprintf("%s://%s", strings.ToLower(protocol), net.JoinHostPort(ip, strconv.Itoa(int(p.Port))))
		if i == 0 {
			v.set(name+"_PORT", url)
		}
		prefix := fmt.Sprintf("%s_PORT_%d_%s", name, p.Port, strings.ToUpper(protocol))
		v.set(prefix, url)
		v.set(prefix+"_PROTO", strings.ToLower(protocol))
		v.set(prefix+"_PORT", strconv.Itoa(int(p.Port)))
		v.set(prefix+"_ADDR", ip)
	}
}

// expand replaces $(NAME) by the variable's value, and leaves a reference to an
// unknown one as it is; $$ is a dollar sign. It is the grammar of Kubernetes'
// third_party/forked/golang/expansion.
func expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch next := s[i+1]; {
		case next == '$':
			b.WriteByte('$')
			i++
		case next == '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if value, ok := lookup(name); ok {
				b.WriteString(value)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
			b.WriteByte(next)
			i++
		}
	}
	return b.String()
}

func expandAll(list []string, v *variables) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, func(name string) (string, bool) { x, ok := v.values[name]; return x, ok })
	}
	return out
}
