package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"edged/runtime/engine"
	"edged/runtime/sandbox"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

// TestResources: the kubelet's numbers for cgroups and the OOM killer, on a
// device of 1 GiB.
func TestResources(t *testing.T) {
	const device = 1 << 30
	for name, tc := range map[string]struct {
		qos              corev1.PodQOSClass
		requests, limits corev1.ResourceList
		want             engine.Resources
	}{
		"nothing":    {corev1.PodQOSBestEffort, nil, nil, engine.Resources{CPUShares: 2, OOMScoreAdj: 1000}},
		"guaranteed": {corev1.PodQOSGuaranteed, list("cpu", "500m", "memory", "64Mi"), list("cpu", "500m", "memory", "64Mi"), engine.Resources{CPUShares: 512, CPUPeriod: 100000, CPUQuota: 50000, MemoryLimitBytes: 64 << 20, OOMScoreAdj: -997}},
		"burstable":  {corev1.PodQOSBurstable, list("cpu", "100m", "memory", "256Mi"), nil, engine.Resources{CPUShares: 102, OOMScoreAdj: 750}},
		"limit only": {corev1.PodQOSBurstable, nil, list("cpu", "2"), engine.Resources{CPUShares: 2048, CPUPeriod: 100000, CPUQuota: 200000, OOMScoreAdj: 999}},
		"tiny":       {corev1.PodQOSBurstable, list("cpu", "1m"), list("cpu", "1m"), engine.Resources{CPUShares: 2, CPUPeriod: 100000, CPUQuota: 1000, OOMScoreAdj: 999}},
		"huge":       {corev1.PodQOSBurstable, list("cpu", "1000", "memory", "2Gi"), nil, engine.Resources{CPUShares: 262144, OOMScoreAdj: 3}},
	} {
		pod := &corev1.Pod{Status: corev1.PodStatus{QOSClass: tc.qos}}
		c := &corev1.Container{Resources: corev1.ResourceRequirements{Requests: tc.requests, Limits: tc.limits}}
		if got := resources(pod, c, device); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, tc.want)
		}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("cpu", "2")}}},
		Containers:     []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("cpu", "500m")}}, {Resources: corev1.ResourceRequirements{Requests: list("cpu", "500m")}}},
	}}
	if got := podShares(pod); got != 2048 {
		t.Errorf("the Pod's shares are %d", got)
	}
}

func build(t *testing.T, pod *corev1.Pod, change func(*making)) (engine.ContainerSpec, error) {
	t.Helper()
	m := making{
		pod: pod, slot: slot{app, &pod.Spec.Containers[0]}, attempt: 2, image: engine.Image{ID: "sha256:1"}, env: &variables{values: map[string]string{"V": "x", "ABS": "/x", "UP": "../x"}},
		box: sandbox.Sandbox{Net: "/n", IPC: "/i", UTS: "/u", Shm: "/shm"}, volumes: map[string]string{"v": "/vol"},
		subPath: func(_ int, volume, sub string, _ bool) (string, error) { return volume + "/+" + sub, nil },
		hosts:   "/hosts", resolvConf: "/resolv", hostname: "h", terminationLog: "/term", seccompDir: "/seccomp", memoryBytes: 1 << 30,
	}
	if change != nil {
		change(&m)
	}
	return m.spec()
}

func TestSpecMounts(t *testing.T) {
	for name, tc := range map[string]struct {
		mount corev1.VolumeMount
		want  string // source of the mount, or ! and the error
	}{
		"whole":                  {corev1.VolumeMount{Name: "v", MountPath: "/m"}, "/vol"},
		"subPath":                {corev1.VolumeMount{Name: "v", MountPath: "/m", SubPath: "a/b"}, "/vol/+a/b"},
		"subPathExpr":            {corev1.VolumeMount{Name: "v", MountPath: "/m", SubPathExpr: "a/$(V)"}, "/vol/+a/x"},
		"subPathExpr, unknown":   {corev1.VolumeMount{Name: "v", MountPath: "/m", SubPathExpr: "$(NO)"}, `!missing value for "NO"`},
		"subPathExpr, absolute":  {corev1.VolumeMount{Name: "v", MountPath: "/m", SubPathExpr: "$(ABS)"}, "!error SubPath `/x` must not be an absolute path"},
		"subPathExpr, backsteps": {corev1.VolumeMount{Name: "v", MountPath: "/m", SubPathExpr: "$(UP)"}, "!unable to provision SubPath `../x`: must not contain '..'"},
		"no such volume":         {corev1.VolumeMount{Name: "w", MountPath: "/m"}, `!volume "w" of container "a" is not there`},
	} {
		pod := onePod(func(c *corev1.Container) { c.VolumeMounts = []corev1.VolumeMount{tc.mount} })
		s, err := build(t, pod, nil)
		if want, bad := strings.CutPrefix(tc.want, "!"); bad {
			if err == nil || err.Error() != want {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil || s.Mounts[0].Source != tc.want || s.Mounts[0].Target != "/m" {
			t.Errorf("%s: %+v %v", name, s.Mounts, err)
		}
	}
	targets := func(s engine.ContainerSpec) (out []string) {
		for _, m := range s.Mounts {
			out = append(out, m.Target+"<"+m.Source)
		}
		return out
	}
	s, err := build(t, onePod(func(c *corev1.Container) { c.TerminationMessagePath = "/t" }), nil)
	if want := []string{"/etc/hosts</hosts", "/etc/resolv.conf</resolv", "/dev/shm</shm", "/t</term"}; err != nil || !slices.Equal(targets(s), want) {
		t.Errorf("%v %v", targets(s), err)
	}
	s, err = build(t, onePod(func(c *corev1.Container) {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/etc/hosts/"}}
	}), nil)
	if got := targets(s); err != nil || slices.Contains(got, "/etc/hosts</hosts") {
		t.Errorf("a volume at /etc/hosts: %v %v", got, err)
	}
}

// TestFilledVolumesAreReadOnly: containers do not write where edged does, and what is
// mounted inside of such a volume has a place there.
func TestFilledVolumesAreReadOnly(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	if err := os.WriteFile(data+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		source corev1.VolumeSource
		want   bool
	}{
		"configMap":   {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}, true},
		"secret":      {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}, true},
		"downwardAPI": {corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}, true},
		"projected":   {corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}, true},
		"image":       {corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}}, true},
		"emptyDir":    {corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, false},
		"hostPath":    {corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}, false},
	} {
		pod := onePod(func(c *corev1.Container) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/m"}, {Name: "v", MountPath: "/s", SubPath: "x"}}
		})
		pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: tc.source}}
		s, err := build(t, pod, nil)
		if err != nil || s.Mounts[0].Readonly != tc.want || s.Mounts[1].Readonly != tc.want {
			t.Errorf("%s: %+v %v", name, s.Mounts[:2], err)
		}
	}
	pod := onePod(func(c *corev1.Container) {
		c.VolumeMounts = []corev1.VolumeMount{
			{Name: "w", MountPath: "/m/tls/deep"}, {Name: "v", MountPath: "/m/"}, {Name: "w", MountPath: "/m/tls"},
			{Name: "w", MountPath: "/m/conf", SubPath: "f"}, {Name: "w", MountPath: "/mm"},
		}
	})
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}}, {Name: "w"}}
	_, err := build(t, pod, func(m *making) {
		m.volumes = map[string]string{"v": dir, "w": data}
		m.subPath = func(_ int, volume, sub string, _ bool) (string, error) { return volume + "/" + sub, nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(os.ReadDir(dir)); got != "[- conf d tls/] <nil>" {
		t.Errorf("mount points are %s", got)
	}
	if got := fmt.Sprint(os.ReadDir(dir + "/tls")); got != "[] <nil>" {
		t.Errorf("below what is mounted: %s", got)
	}
}

func TestSpecSecurity(t *testing.T) {
	yes, no, root, user := true, false, int64(0), int64(1000)
	name := `pod: "p_ns(u1)", container: a`
	for _, tc := range []struct {
		name string
		pod  *corev1.PodSecurityContext
		c    *corev1.SecurityContext
		user string // the image's
		err  string
		ok   func(engine.ContainerSpec) bool
	}{
		{name: "nothing asked for", ok: func(s engine.ContainerSpec) bool { return s.Seccomp.Unconfined && !s.Privileged && !s.NoNewPrivileges }},
		{name: "the container's user beats the Pod's", pod: &corev1.PodSecurityContext{RunAsUser: &root}, c: &corev1.SecurityContext{RunAsUser: &user}, ok: func(s engine.ContainerSpec) bool { return s.User.UID != nil && *s.User.UID == 1000 }},
		{name: "root by the spec", pod: &corev1.PodSecurityContext{RunAsUser: &root, RunAsNonRoot: &yes}, err: "container's runAsUser breaks non-root policy (" + name + ")"},
		{name: "root by the image", c: &corev1.SecurityContext{RunAsNonRoot: &yes}, err: "container has runAsNonRoot and image will run as root (" + name + ")"},
		{name: "a name in the image", user: "web", c: &corev1.SecurityContext{RunAsNonRoot: &yes}, err: "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root (" + name + ")"},
		{name: "a number in the image", user: "7", c: &corev1.SecurityContext{RunAsNonRoot: &yes}, ok: func(engine.ContainerSpec) bool { return true }},
		{name: "nonroot off in the container", pod: &corev1.PodSecurityContext{RunAsNonRoot: &yes}, c: &corev1.SecurityContext{RunAsNonRoot: &no}, ok: func(engine.ContainerSpec) bool { return true }},
		{name: "groups", pod: &corev1.PodSecurityContext{FSGroup: &user, SupplementalGroups: []int64{5}}, ok: func(s engine.ContainerSpec) bool { return slices.Equal(s.SupplementalGroups, []uint32{5, 1000}) }},
		{name: "privileges", c: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}},
			ok: func(s engine.ContainerSpec) bool {
				return s.NoNewPrivileges && s.ReadonlyRootfs && slices.Equal(s.CapAdd, []string{"NET_ADMIN"}) && slices.Equal(s.CapDrop, []string{"ALL"})
			}},
		{name: "seccomp of the runtime", pod: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}, ok: func(s engine.ContainerSpec) bool { return s.Seccomp == engine.Profile{} }},
		{name: "seccomp of a file stays in its folder", c: &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr("../../etc/x")}}, ok: func(s engine.ContainerSpec) bool { return s.Seccomp.Localhost == "/seccomp/etc/x" }},
		{name: "sysctls", pod: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net/ipv4/ip_local_port_range", Value: "1 2"}}}, ok: func(s engine.ContainerSpec) bool { return s.Sysctls["net.ipv4.ip_local_port_range"] == "1 2" }},
	} {
		pod := onePod(func(c *corev1.Container) { c.SecurityContext = tc.c })
		pod.Spec.SecurityContext = tc.pod
		s, err := build(t, pod, func(m *making) { m.image.Config.User = tc.user })
		switch {
		case tc.err != "":
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: %v", tc.name, err)
			}
		case err != nil || !tc.ok(s):
			t.Errorf("%s: %+v %v", tc.name, s, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestAdmit(t *testing.T) {
	for name, tc := range map[string]struct {
		sysctl  string
		change  func(*corev1.Pod)
		message string
	}{
		"safe":              {"kernel.shm_rmid_forced", func(*corev1.Pod) {}, ""},
		"not safe":          {"kernel.msgmax", func(*corev1.Pod) {}, `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"the host's":        {"net.ipv4.tcp_syncookies", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host namespaces`},
		"the host's memory": {"kernel.shm_rmid_forced", func(p *corev1.Pod) { p.Spec.HostIPC = true }, `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host namespaces`},
	} {
		pod := onePod()
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: tc.sysctl, Value: "1"}}}
		tc.change(pod)
		got := ""
		if f := admit(pod); f != nil {
			got = f.message
		}
		if got != tc.message {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestResolvConf(t *testing.T) {
	host := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(host, []byte("# by hand\nnameserver 192.0.2.53\nsearch . lan\noptions timeout:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := DNS{Server: "10.43.0.10", Domain: "cluster.local", HostResolvConf: host}
	cluster := "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n"
	device := "search lan\nnameserver 192.0.2.53\noptions timeout:1\n"
	for name, tc := range map[string]struct {
		policy corev1.DNSPolicy
		change func(*corev1.PodSpec)
		want   string
	}{
		"cluster":                  {corev1.DNSClusterFirst, func(*corev1.PodSpec) {}, cluster},
		"the device's network":     {corev1.DNSClusterFirst, func(s *corev1.PodSpec) { s.HostNetwork = true }, device},
		"cluster with its network": {corev1.DNSClusterFirstWithHostNet, func(s *corev1.PodSpec) { s.HostNetwork = true }, cluster},
		"default":                  {corev1.DNSDefault, func(*corev1.PodSpec) {}, device},
		"none": {corev1.DNSNone, func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"x"}, Options: []corev1.PodDNSConfigOption{{Name: "edns0"}, {Name: "ndots", Value: ptr("2")}}}
		}, "search x\nnameserver 1.1.1.1\noptions edns0 ndots:2\n"},
		"merged": {corev1.DNSClusterFirst, func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"10.43.0.10", "1.1.1.1"}, Searches: []string{"lan", "x"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("1")}}}
		}, "search ns.svc.cluster.local svc.cluster.local cluster.local lan x\nnameserver 10.43.0.10\nnameserver 1.1.1.1\noptions ndots:1\n"},
	} {
		pod := onePod()
		pod.Spec.DNSPolicy = tc.policy
		tc.change(&pod.Spec)
		if got, err := resolvConf(pod, d); err != nil || got != tc.want {
			t.Errorf("%s: %v\n got %q\nwant %q", name, err, got, tc.want)
		}
	}
}

func TestHostsAndHostname(t *testing.T) {
	pod := onePod()
	pod.Name = strings.Repeat("a", 62) + "-b"
	if short, full := hostname(pod, "cluster.local"); short != strings.Repeat("a", 62) || full != "" {
		t.Errorf("%q %q", short, full)
	}
	pod.Spec.Hostname, pod.Spec.Subdomain = "web", "sub"
	if short, full := hostname(pod, "cluster.local"); short != "web" || full != "web.sub.ns.svc.cluster.local" {
		t.Errorf("%q %q", short, full)
	}
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"x", "y"}}}
	got, err := hostsFile(pod, []string{"10.42.0.2"}, "cluster.local")
	if err != nil || !strings.HasPrefix(got, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n") ||
		!strings.HasSuffix(got, "10.42.0.2\tweb.sub.ns.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n") {
		t.Errorf("%q %v", got, err)
	}
	pod.Spec.SetHostnameAsFQDN = ptr(true)
	if short, _ := hostname(pod, "cluster.local"); short != "web.sub.ns.svc.cluster.local" {
		t.Errorf("FQDN: %q", short)
	}
}
