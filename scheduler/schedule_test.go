package scheduler

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// world is what snapshots look up in tests.
type world struct {
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
	classes map[string]*storagev1.StorageClass
	budgets []*policyv1.PodDisruptionBudget
}

func (w world) NamespaceLabels(ns string) labels.Set {
	return labels.Set{corev1.LabelMetadataName: ns}
}
func (w world) Claim(_, name string) (*corev1.PersistentVolumeClaim, bool) {
	c, ok := w.claims[name]
	return c, ok
}
func (w world) Volume(name string) (*corev1.PersistentVolume, bool) {
	v, ok := w.volumes[name]
	return v, ok
}
func (w world) Volumes() []*corev1.PersistentVolume {
	return slices.Collect(maps.Values(w.volumes))
}
func (w world) Class(name string) (*storagev1.StorageClass, bool) {
	c, ok := w.classes[name]
	return c, ok
}
func (w world) Budgets(string) []*policyv1.PodDisruptionBudget { return w.budgets }
func list(cpu, memory string, more ...string) corev1.ResourceList {
	l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	for i := 0; i+1 < len(more); i += 2 {
		l[corev1.ResourceName(more[i])] = resource.MustParse(more[i+1])
	}
	return l
}

func node(name string, mod ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status:     corev1.NodeStatus{Allocatable: list("4", "4Gi", "pods", "10")},
	}
	for _, m := range mod {
		m(n)
	}
	return n
}

func zone(z string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = z }
}

func pod(name string, mod ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "a"}},
		Spec:       corev1.PodSpec{SchedulerName: name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, m := range mod {
		m(p)
	}
	return p
}

func wants(cpu, memory string, more ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list(cpu, memory, more...) }
}

func on(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func priority(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }

func hostPort(port int32, ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: port, HostIP: ip, ContainerPort: port, Protocol: corev1.ProtocolTCP}}
	}
}

var appA = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}

func antiAffinity(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: appA, TopologyKey: key}}}}
	}
}

func affinity(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: appA, TopologyKey: key}}}}
	}
}

func spread(key string, skew int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{TopologyKey: key, MaxSkew: skew, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: appA}}
	}
}

func snapshotOf(w world, nodes []*corev1.Node, pods ...*corev1.Pod) *Snapshot {
	s := newState(w)
	for _, n := range nodes {
		s.setNode(n)
	}
	for _, p := range pods {
		s.setPod(newPodInfo(p))
	}
	return s.snapshot()
}

func tainted(effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Value: "v", Effect: effect}} }
}

// withClaims is a Pod with the claims of these names.
func withClaims(names ...string) *corev1.Pod {
	return pod("p", func(p *corev1.Pod) {
		for _, name := range names {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
		}
	})
}

func named(name string, p *corev1.Pod, mod ...func(*corev1.Pod)) *corev1.Pod {
	p.Name, p.UID = name, types.UID("uid-"+name)
	for _, m := range mod {
		m(p)
	}
	return p
}

// storageWorld has claims of all kinds, on the nodes n and m.
func storageWorld() world {
	w := world{claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{}, classes: map[string]*storagev1.StorageClass{}}
	size := func(s string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(s)}
	}
	volume := func(name, class, node string) {
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, Capacity: size("1Gi"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
		if node != "" {
			pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}}
		}
		w.volumes[name] = pv
	}
	claim := func(name, class, volume string, bound bool, annotations map[string]string, modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Annotations: map[string]string{}}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, VolumeName: volume, AccessModes: append(modes, corev1.ReadWriteOnce)[:1], Resources: corev1.VolumeResourceRequirements{Requests: size("1Gi")},
		}}
		maps.Copy(c.Annotations, annotations)
		if bound {
			c.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
		}
		w.claims[name] = c
		return c
	}
	class := func(name, provisioner string, mode storagev1.VolumeBindingMode, topologies ...corev1.TopologySelectorTerm) {
		w.classes[name] = &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode, AllowedTopologies: topologies}
	}
	class("makes", "example.com/p", storagev1.VolumeBindingWaitForFirstConsumer)
	class("finds", "kubernetes.io/no-provisioner", storagev1.VolumeBindingWaitForFirstConsumer)
	class("at-once", "example.com/p", storagev1.VolumeBindingImmediate)
	class("zoned", "example.com/p", storagev1.VolumeBindingWaitForFirstConsumer, corev1.TopologySelectorTerm{
		MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelTopologyZone, Values: []string{"b"}}},
	})
	volume("v-n", "", "n")
	volume("v-m", "finds", "m")
	volume("v-shared", "", "")
	claim("on-n", "", "v-n", true, nil)
	claim("dangling", "", "gone", true, nil)
	claim("lost", "", "gone", true, nil).Status.Phase = corev1.ClaimLost
	claim("half", "makes", "v-n", false, nil)
	claim("immediate", "at-once", "", false, nil)
	claim("made", "makes", "", false, nil)
	claim("selected-n", "makes", "", false, map[string]string{"volume.kubernetes.io/selected-node": "n"})
	claim("static", "finds", "", false, nil)
	claim("static2", "finds", "", false, nil)
	claim("zoned", "zoned", "", false, nil)
	claim("exclusive", "", "v-n", true, nil, corev1.ReadWriteOncePod)
	claim("exclusive-shared", "", "v-shared", true, nil, corev1.ReadWriteOncePod)
	return w
}

func TestSchedule(t *testing.T) {
	big := wants("3", "1Gi")
	storage, nodes := storageWorld(), []*corev1.Node{node("n", zone("a")), node("m", zone("b"))}
	for _, tt := range []struct {
		name  string
		world world
		nodes []*corev1.Node
		on    []*corev1.Pod
		pod   *corev1.Pod
		want  string // a node, or the beginning of the reason
	}{
		{"no nodes", world{}, nil, nil, pod("p"), "no nodes available to schedule pods"},
		{"fits", world{}, []*corev1.Node{node("n")}, nil, pod("p"), "n"},
		{"cpu", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", big, on("n"))}, pod("p", big), "0/1 nodes are available: 1 Insufficient cpu."},
		{"two reasons", world{}, []*corev1.Node{node("n")}, nil, pod("p", wants("8", "8Gi")), "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."},
		{"extended resource", world{}, []*corev1.Node{node("n")}, nil, pod("p", wants("1", "1Gi", "example.com/foo", "1")), "0/1 nodes are available: 1 Insufficient example.com/foo."},
		{"overhead", world{}, []*corev1.Node{node("n")}, nil, pod("p", big, func(p *corev1.Pod) { p.Spec.Overhead = list("2", "0") }), "0/1 nodes are available: 1 Insufficient cpu."},
		{"cordoned", world{}, []*corev1.Node{node("n", func(n *corev1.Node) { n.Spec.Unschedulable = true })}, nil, pod("p"), "0/1 nodes are available: 1 node(s) were unschedulable."},
		{"taint", world{}, []*corev1.Node{node("n", tainted(corev1.TaintEffectNoSchedule)), node("m", tainted(corev1.TaintEffectNoExecute))}, nil, pod("p"), "0/2 nodes are available: 2 node(s) had untolerated taint(s)."},
		{"soft taint", world{}, []*corev1.Node{node("n", tainted(corev1.TaintEffectPreferNoSchedule)), node("m")}, nil, pod("p"), "m"},
		{"tolerated", world{}, []*corev1.Node{node("n", tainted(corev1.TaintEffectNoSchedule))}, nil, pod("p", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}
		}), "n"},
		{"selector", world{}, []*corev1.Node{node("n"), node("m")}, nil, pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "m"} }), "m"},
		{"selector of none", world{}, []*corev1.Node{node("n")}, nil, pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"x": "y"} }), "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."},
		{"port taken", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", on("n"), hostPort(80, "127.0.0.1"))}, pod("p", hostPort(80, "0.0.0.0")), "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		{"port on another address", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", on("n"), hostPort(80, "127.0.0.1"))}, pod("p", hostPort(80, "127.0.0.2")), "n"},
		{"anti-affinity", world{}, []*corev1.Node{node("n"), node("m")}, []*corev1.Pod{pod("o", on("n"))}, pod("p", antiAffinity(corev1.LabelHostname)), "m"},
		{"anti-affinity of the other", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", on("n"), antiAffinity(corev1.LabelHostname))}, pod("p"), "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."},
		{"affinity", world{}, []*corev1.Node{node("n", zone("a")), node("m", zone("b")), node("k", zone("b"), tainted(corev1.TaintEffectNoSchedule))}, []*corev1.Pod{pod("o", on("k"))}, pod("p", affinity(corev1.LabelTopologyZone)), "m"},
		{"affinity with nobody", world{}, []*corev1.Node{node("n")}, nil, pod("p", affinity(corev1.LabelHostname), func(p *corev1.Pod) { p.Labels = nil }), "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."},
		{"affinity with itself", world{}, []*corev1.Node{node("n")}, nil, pod("p", affinity(corev1.LabelHostname)), "n"},
		{"spread", world{}, []*corev1.Node{node("n"), node("m")}, []*corev1.Pod{pod("o", on("n"))}, pod("p", spread(corev1.LabelHostname, 1)), "m"},
		{"spread without label", world{}, []*corev1.Node{node("n")}, nil, pod("p", spread("x", 1)), "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."},
		{"claim missing", world{}, []*corev1.Node{node("n")}, nil, pod("p", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
		}), `0/1 nodes are available: persistentvolumeclaim "c" not found.`},
		{"claims", storage, nodes, nil, withClaims("on-n"), "n"},
		{"claim of another node", storage, nodes[1:], nil, withClaims("on-n"), "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity."},
		{"volume gone", storage, nodes, nil, withClaims("dangling"), "0/2 nodes are available: 2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)."},
		{"claim lost", storage, nodes, nil, withClaims("lost"), `0/2 nodes are available: persistentvolumeclaim "lost" bound to non-existent persistentvolume "gone".`},
		{"binding not completed", storage, nodes, nil, withClaims("half"), "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		{"immediate", storage, nodes, nil, withClaims("immediate"), "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		{"made where the Pod goes", storage, nodes, []*corev1.Pod{pod("o", big, on("n"))}, withClaims("made"), "m"},
		{"made where it was decided", storage, nodes, []*corev1.Pod{pod("o", big, on("n"))}, withClaims("selected-n"), "n"},
		{"to be found, on m only", storage, nodes, []*corev1.Pod{pod("o", big, on("m"))}, withClaims("static"), "m"},
		{"two to be found, one is there", storage, nodes, nil, withClaims("static", "static2"), "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"made in a zone", storage, nodes, []*corev1.Pod{pod("o", big, on("m"))}, withClaims("zoned"), "m"},
		{"not made yet", storage, nodes, nil, pod("p", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
		}), `0/2 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim "p-v".`},
		{"for one Pod", storage, nodes, nil, withClaims("exclusive"), "n"},
		{"for one Pod, which is there", storage, nodes, []*corev1.Pod{named("o", withClaims("exclusive"), on("n"))}, withClaims("exclusive"), "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod."},
		{"for one Pod, which is elsewhere", storage, nodes, []*corev1.Pod{named("o", withClaims("exclusive-shared"), on("n"))}, withClaims("exclusive-shared"), "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod."},
		{"least allocated", world{}, []*corev1.Node{node("n"), node("m")}, []*corev1.Pod{pod("o", big, on("n"))}, pod("p"), "m"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := schedule(snapshotOf(tt.world, tt.nodes, tt.on...), newPodInfo(tt.pod))
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestPreempt(t *testing.T) {
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: appA, MinAvailable: ptr.To(intstr.FromInt32(1))},
	}
	other := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "b"} }
	for _, tt := range []struct {
		name  string
		world world
		nodes []*corev1.Node
		on    []*corev1.Pod
		pod   *corev1.Pod
		want  string // "node: victims", or the message
	}{
		{"the least important goes", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("low", wants("2", "0"), on("n"), priority(1)), pod("mid", wants("2", "0"), on("n"), priority(2))}, pod("p", wants("2", "0"), priority(3)), "n: low"},
		{"nobody is lower", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", wants("4", "0"), on("n"), priority(3))}, pod("p", wants("2", "0"), priority(3)), "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{"never", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", wants("4", "0"), on("n"))}, pod("p", wants("2", "0"), priority(3), func(p *corev1.Pod) { p.Spec.PreemptionPolicy = ptr.To(corev1.PreemptNever) }), "preemption: not eligible due to preemptionPolicy=Never."},
		{"does not help", world{}, []*corev1.Node{node("n", tainted(corev1.TaintEffectNoSchedule))}, []*corev1.Pod{pod("o", on("n"))}, pod("p", priority(3)), "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{"budgets are spared", world{budgets: []*policyv1.PodDisruptionBudget{budget}}, []*corev1.Node{node("m"), node("n")}, []*corev1.Pod{pod("o", wants("4", "0"), on("m")), pod("q", wants("4", "0"), on("n"), other)}, pod("p", wants("2", "0"), priority(3), other), "n: q"},
		{"ports", world{}, []*corev1.Node{node("n")}, []*corev1.Pod{pod("o", on("n"), hostPort(80, "")), pod("q", on("n"))}, pod("p", priority(3), hostPort(80, "")), "n: o"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap := snapshotOf(tt.world, tt.nodes, tt.on...)
			_, fail := schedule(snap, newPodInfo(tt.pod))
			if fail == nil {
				t.Fatal("it fits")
			}
			c, got := preempt(snap, newPodInfo(tt.pod), fail)
			if c != nil {
				got = c.node.node.Name + ":"
				for _, v := range c.victims {
					got += " " + v.pod.Name
				}
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// Random clusters are filled Pod by Pod; whatever was decided must hold: no
// node over its room, no port twice, no two Pods where anti-affinity forbids,
// no skew beyond the constraint.
func TestScheduleProperties(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		s := newState(world{})
		for i := range 1 + r.IntN(5) {
			s.setNode(node(fmt.Sprintf("n%d", i), zone(string(rune('a'+r.IntN(2))))))
		}
		for i := range 40 {
			p := pod(fmt.Sprintf("p%d", i), wants(fmt.Sprintf("%dm", r.IntN(1500)), fmt.Sprintf("%dMi", r.IntN(1500))))
			switch r.IntN(5) {
			case 0:
				hostPort(int32(80+r.IntN(3)), "")(p)
			case 1:
				antiAffinity(corev1.LabelHostname)(p)
			case 2:
				spread(corev1.LabelTopologyZone, 2)(p)
			}
			before := s.snapshot()
			name, err := schedule(before, newPodInfo(p))
			again, _ := schedule(before, newPodInfo(p))
			if again != name {
				t.Fatalf("seed %d: %s went to %q and then to %q", seed, p.Name, name, again)
			}
			if err != nil {
				if !strings.HasPrefix(err.Error(), "0/") {
					t.Fatalf("seed %d: %v", seed, err)
				}
				continue
			}
			s.assume(newPodInfo(p), name)
			check(t, seed, s.snapshot())
		}
	}
}

func check(t *testing.T, seed uint64, snap *Snapshot) {
	t.Helper()
	for _, n := range snap.nodes {
		if n.requested.milliCPU > n.allocatable.milliCPU || n.requested.memoryBytes > n.allocatable.memoryBytes || int64(len(n.pods)) > n.allocatable.pods {
			t.Fatalf("seed %d: %s is over its room: %+v of %+v", seed, n.node.Name, n.requested, n.allocatable)
		}
		ports := map[int32]bool{}
		for _, p := range n.pods {
			for _, port := range p.ports {
				if ports[port.HostPort] {
					t.Fatalf("seed %d: port %d twice on %s", seed, port.HostPort, n.node.Name)
				}
				ports[port.HostPort] = true
			}
			if len(p.antiAffinity) > 0 && len(n.pods) > 1 {
				t.Fatalf("seed %d: %s is not alone on %s", seed, p.key, n.node.Name)
			}
		}
	}
}

func BenchmarkSchedule100Pods(b *testing.B) {
	var nodes []*corev1.Node
	for i := range 10 {
		nodes = append(nodes, node(fmt.Sprintf("n%d", i), func(n *corev1.Node) { n.Status.Allocatable = list("64", "64Gi", "pods", "110") }))
	}
	for b.Loop() {
		s := newState(world{})
		for _, n := range nodes {
			s.setNode(n)
		}
		for i := range 100 {
			p := newPodInfo(pod(fmt.Sprintf("p%d", i), wants("10m", "10Mi")))
			name, err := schedule(s.snapshot(), p)
			if err != nil {
				b.Fatal(err)
			}
			s.assume(p, name)
		}
	}
}
