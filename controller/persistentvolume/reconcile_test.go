package persistentvolume

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry/claims"
)

// world is a World of lists.
type world struct {
	claims  []*corev1.PersistentVolumeClaim
	volumes []*corev1.PersistentVolume
	classes []*storagev1.StorageClass
	nodes   []*corev1.Node
	pods    []*corev1.Pod
}

func (w world) Claim(ns, name string) *corev1.PersistentVolumeClaim {
	for _, c := range w.claims {
		if c.Namespace == ns && c.Name == name {
			return c
		}
	}
	return nil
}

func (w world) Volume(name string) *corev1.PersistentVolume {
	for _, v := range w.volumes {
		if v.Name == name {
			return v
		}
	}
	return nil
}

func (w world) Volumes() []*corev1.PersistentVolume { return w.volumes }
func (w world) Classes() []*storagev1.StorageClass  { return w.classes }
func (w world) Nodes() []*corev1.Node               { return w.nodes }
func (w world) Pods(string) []*corev1.Pod           { return w.pods }

func size(s string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(s)}
}

func claim(mod ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "uid-c", Finalizers: []string{claims.ProtectionFinalizer}, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("manual"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: size("5Gi")},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, m := range mod {
		m(c)
	}
	return c
}

func ofClass(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
}

func annotated(kv ...string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		for i := 0; i < len(kv); i += 2 {
			c.Annotations[kv[i]] = kv[i+1]
		}
	}
}

func boundTo(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Annotations["pv.kubernetes.io/bind-completed"] = volume, "yes"
	}
}

func wants(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func volume(name, capacity string, mod ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}, Finalizers: []string{claims.VolumeProtectionFinalizer}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: "manual", Capacity: size(capacity), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, m := range mod {
		m(v)
	}
	return v
}

func claimedBy(name, uid string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID(uid)}
	}
}

func with(mod func(*corev1.PersistentVolume)) func(*corev1.PersistentVolume) { return mod }

// madeHere is edged's own volume on the device n.
func madeHere(v *corev1.PersistentVolume) {
	v.Annotations["pv.kubernetes.io/provisioned-by"] = claims.LocalPath
	v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	v.Spec.Local = &corev1.LocalVolumeSource{Path: "/volumes/" + v.Name}
	v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"n"}}},
	}}}}
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, mod ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, m := range mod {
		m(c)
	}
	return c
}

func user(name, onNode, claim string, mod ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{NodeName: onNode, Volumes: []corev1.Volume{{
		Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}},
	}}}}
	for _, m := range mod {
		m(p)
	}
	return p
}

func deleted(c *corev1.PersistentVolumeClaim) { now := metav1.Now(); c.DeletionTimestamp = &now }

// about is a step in short: what is bound, asked for or set, and the Event.
func about(s ClaimStep) string {
	var out []string
	add := func(ok bool, what string) {
		if ok {
			out = append(out, what)
		}
	}
	add(s.Unprotect, "unprotect")
	add(s.Class != "", "class "+s.Class)
	add(s.Ask != "", "ask "+s.Ask)
	add(s.Unselect, "unselect")
	if s.Bind != nil {
		out = append(out, "bind "+s.Bind.Name)
	}
	add(s.Phase != "", string(s.Phase))
	if s.Event != nil {
		out = append(out, s.Event.Type+" "+s.Event.Reason+": "+s.Event.Message)
	}
	return strings.Join(out, ", ")
}

func TestClaim(t *testing.T) {
	const (
		immediate = storagev1.VolumeBindingImmediate
		waiting   = storagev1.VolumeBindingWaitForFirstConsumer
		selected  = "volume.kubernetes.io/selected-node"
		asked     = "volume.kubernetes.io/storage-provisioner"
	)
	isDefault := func(c *storagev1.StorageClass) {
		c.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	}
	local := class("local-path", claims.LocalPath, waiting)
	modes := func(m ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.AccessModes = m }
	}
	labeled := func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"disk": "ssd"} }
	selecting := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "ssd"}}
	}
	block := func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }
	for _, tt := range []struct {
		name  string
		w     world
		claim *corev1.PersistentVolumeClaim
		want  string
	}{
		{"no class, no volume", world{}, claim(ofClass("")), "Pending, Normal FailedBinding: no persistent volumes available for this claim and no storage class is set"},
		{"class that is not there", world{}, claim(), `Pending, Warning ProvisioningFailed: storageclass.storage.k8s.io "manual" not found`},
		{"smallest that is enough", world{volumes: []*corev1.PersistentVolume{volume("large", "20Gi"), volume("small", "1Gi"), volume("fits", "6Gi")}}, claim(), "bind fits"},
		{"fewest modes first", world{volumes: []*corev1.PersistentVolume{
			volume("many", "5Gi", modes(corev1.ReadWriteMany, corev1.ReadWriteOnce)), volume("one", "9Gi"), volume("other", "5Gi", modes(corev1.ReadOnlyMany)),
		}}, claim(), "bind one"},
		{"of another class", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", with(func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = "" }))}}, claim(), `Pending, Warning ProvisioningFailed: storageclass.storage.k8s.io "manual" not found`},
		{"by labels", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi"), volume("ssd", "50Gi", labeled)}}, claim(selecting), "bind ssd"},
		{"reserved for another", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("other", ""))}}, claim(ofClass("manual")), `Pending, Warning ProvisioningFailed: storageclass.storage.k8s.io "manual" not found`},
		{"reserved for it", world{volumes: []*corev1.PersistentVolume{volume("small", "5Gi"), volume("v", "50Gi", claimedBy("c", ""))}}, claim(), "bind v"},
		{"reserved for its predecessor", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("c", "uid-old"))}, classes: []*storagev1.StorageClass{class("manual", "kubernetes.io/no-provisioner", immediate)}}, claim(), "Pending, Warning ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner"},
		{"of another mode", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("c", ""), block)}}, claim(), `Pending, Warning VolumeMismatch: Cannot bind PersistentVolume "v" to requested PersistentVolumeClaim due to incompatible volumeMode.`},
		{"released", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", with(func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased }))}}, claim(ofClass("manual")), `Pending, Warning ProvisioningFailed: storageclass.storage.k8s.io "manual" not found`},

		{"asks for one that is free", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi")}}, claim(wants("v")), "bind v"},
		{"asks for one that is not there", world{}, claim(wants("v")), "Pending"},
		{"asks for one that is too small", world{volumes: []*corev1.PersistentVolume{volume("v", "1Gi")}}, claim(wants("v")), `Pending, Warning VolumeMismatch: Cannot bind to requested volume "v": requested PV is too small`},
		{"asks for one of another class", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi")}}, claim(wants("v"), ofClass("x")), `Pending, Warning VolumeMismatch: Cannot bind to requested volume "v": storageClassName does not match`},
		{"asks for another's", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("other", "u"))}}, claim(wants("v")), `Pending, Warning FailedBinding: volume "v" already bound to a different claim.`},

		{"waits for its Pod", world{classes: []*storagev1.StorageClass{local}}, claim(ofClass("local-path")), "Pending, Normal WaitForFirstConsumer: waiting for first consumer to be created before binding"},
		{"its Pod waits", world{classes: []*storagev1.StorageClass{local}, pods: []*corev1.Pod{user("p", "", "c")}}, claim(ofClass("local-path")), "Pending, Normal WaitForPodScheduled: waiting for pod p to be scheduled"},
		{"does not take what waits", world{classes: []*storagev1.StorageClass{class("manual", "x.y/z", waiting)}, volumes: []*corev1.PersistentVolume{volume("v", "5Gi")}}, claim(), "Pending, Normal WaitForFirstConsumer: waiting for first consumer to be created before binding"},
		{"asked of the device", world{classes: []*storagev1.StorageClass{local}, nodes: []*corev1.Node{node("n")}}, claim(ofClass("local-path"), annotated(selected, "n")), "ask edged.dev/local-path, Pending"},
		{"by the other name", world{classes: []*storagev1.StorageClass{class("k3s", "rancher.io/local-path", waiting)}, nodes: []*corev1.Node{node("n")}}, claim(ofClass("k3s"), annotated(selected, "n")), "ask rancher.io/local-path, Pending"},
		{"asked already", world{classes: []*storagev1.StorageClass{local}, nodes: []*corev1.Node{node("n")}}, claim(ofClass("local-path"), annotated(selected, "n", asked, claims.LocalPath)), "Pending"},
		{"the device is gone", world{classes: []*storagev1.StorageClass{local}}, claim(ofClass("local-path"), annotated(selected, "n")), `unselect, Pending, Warning ProvisioningFailed: Failed to provision volume with StorageClass "local-path": Failed to get target node: node "n" not found`},
		{"made at once on no device", world{classes: []*storagev1.StorageClass{class("local", claims.LocalPath, immediate)}}, claim(ofClass("local")), `Pending, Warning ProvisioningFailed: Failed to provision volume with StorageClass "local": no node was chosen: the class must have volumeBindingMode WaitForFirstConsumer`},
		{"a provisioner of others", world{classes: []*storagev1.StorageClass{class("csi", "csi.example", immediate)}}, claim(ofClass("csi")), "ask csi.example, Pending, Normal ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'csi.example' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."},
		{"made for it meanwhile", world{classes: []*storagev1.StorageClass{local}, volumes: []*corev1.PersistentVolume{volume("pvc-uid-c", "5Gi", claimedBy("c", "uid-c"), madeHere)}}, claim(ofClass("local-path"), annotated(selected, "n", asked, claims.LocalPath)), "bind pvc-uid-c"},
		{"a default class came", world{classes: []*storagev1.StorageClass{class("d", "x.y/z", waiting, isDefault)}}, claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }), "class d"},
		{"wants no class", world{classes: []*storagev1.StorageClass{class("d", "x.y/z", waiting, isDefault)}}, claim(ofClass("")), "Pending, Normal FailedBinding: no persistent volumes available for this claim and no storage class is set"},

		{"bound", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("c", "uid-c"))}}, claim(boundTo("v")), "bind v"},
		{"bound, the volume does not know", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi")}}, claim(boundTo("v")), "bind v"},
		{"its volume is gone", world{}, claim(boundTo("v")), "Lost, Warning ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!"},
		{"its volume's name is gone", world{}, claim(boundTo("")), "Lost, Warning ClaimLost: Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"},
		{"its volume is another's", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("c", "uid-other"))}}, claim(boundTo("v")), "Lost, Warning ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly"},

		{"deleted", world{}, claim(deleted), "unprotect"},
		{"deleted and used", world{volumes: []*corev1.PersistentVolume{volume("v", "5Gi", claimedBy("c", "uid-c"))}, pods: []*corev1.Pod{user("p", "n", "c")}}, claim(boundTo("v"), deleted), "bind v"},
		{"deleted, its Pod has no node", world{pods: []*corev1.Pod{user("p", "", "c")}}, claim(deleted), "unprotect"},
		{"deleted, another is used", world{pods: []*corev1.Pod{user("p", "n", "d")}}, claim(deleted), "unprotect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := about(Claim(tt.w, tt.claim)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	local := class("l", claims.LocalPath, storagev1.VolumeBindingWaitForFirstConsumer)
	mounted := class("l", claims.LocalPath, storagev1.VolumeBindingWaitForFirstConsumer, func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime"} })
	for _, tt := range []struct {
		what  string
		class *storagev1.StorageClass
		mod   func(*corev1.PersistentVolumeClaim)
		want  bool
	}{
		{"once", local, func(*corev1.PersistentVolumeClaim) {}, false},
		{"one Pod", local, func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteOncePod }, false},
		{"many", local, func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, true},
		{"block", local, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }, true},
		{"selector", local, func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, true},
		{"data source", local, func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }, true},
		{"mount options", mounted, func(*corev1.PersistentVolumeClaim) {}, true},
	} {
		c := claim(ofClass("l"), annotated("volume.kubernetes.io/selected-node", "n"), tt.mod)
		step := Claim(world{classes: []*storagev1.StorageClass{tt.class}, nodes: []*corev1.Node{node("n")}}, c)
		if refused := step.Ask == "" && step.Event != nil && step.Event.Reason == "ProvisioningFailed"; refused != tt.want {
			t.Errorf("%s: %s", tt.what, about(step))
		}
	}
}

func TestVolume(t *testing.T) {
	remove := func(v *corev1.PersistentVolume) {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	}
	phase := func(p corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Status.Phase = p }
	}
	gone := func(v *corev1.PersistentVolume) { now := metav1.Now(); v.DeletionTimestamp = &now }
	mine := claimedBy("c", "uid-c")
	noDeleter := `error getting deleter volume plugin for volume "v": no deletable volume plugin matched`
	for _, tt := range []struct {
		name   string
		w      world
		volume *corev1.PersistentVolume
		want   VolumeStep
	}{
		{"new", world{}, volume("v", "1Gi", phase(corev1.VolumePending)), VolumeStep{Phase: corev1.VolumeAvailable}},
		{"available", world{}, volume("v", "1Gi"), VolumeStep{}},
		{"reserved", world{}, volume("v", "1Gi", claimedBy("c", ""), phase(corev1.VolumePending)), VolumeStep{Phase: corev1.VolumeAvailable}},
		{"being bound", world{claims: []*corev1.PersistentVolumeClaim{claim()}}, volume("v", "1Gi", mine, phase(corev1.VolumePending)), VolumeStep{}},
		{"bound", world{claims: []*corev1.PersistentVolumeClaim{claim(boundTo("v"))}}, volume("v", "1Gi", mine), VolumeStep{Phase: corev1.VolumeBound}},
		{"bound and deleted", world{claims: []*corev1.PersistentVolumeClaim{claim(boundTo("v"))}}, volume("v", "1Gi", mine, phase(corev1.VolumeBound), gone), VolumeStep{}},
		{"free and deleted", world{}, volume("v", "1Gi", gone), VolumeStep{Unprotect: true}},
		{"its claim has another", world{claims: []*corev1.PersistentVolumeClaim{claim(boundTo("w"))}}, volume("v", "1Gi", mine, phase(corev1.VolumeBound)), VolumeStep{Unbind: true}},
		{"made for a claim that has another", world{claims: []*corev1.PersistentVolumeClaim{claim(boundTo("w"))}, nodes: []*corev1.Node{node("n")}}, volume("v", "1Gi", mine, madeHere, phase(corev1.VolumeBound)), VolumeStep{Phase: corev1.VolumeReleased}},
		{"released, retained", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeBound)), VolumeStep{Phase: corev1.VolumeReleased}},
		{"its claim has a successor", world{claims: []*corev1.PersistentVolumeClaim{claim()}}, volume("v", "1Gi", claimedBy("c", "uid-old"), phase(corev1.VolumeBound)), VolumeStep{Phase: corev1.VolumeReleased}},
		{"released and deleted", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeBound), gone), VolumeStep{Phase: corev1.VolumeReleased, Unprotect: true}},
		{"recycled", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeBound), with(func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRecycle
		})),
			VolumeStep{Phase: corev1.VolumeFailed, Message: "No recycler plugin found for the volume!", Event: warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")}},
		{"nobody deletes it", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeBound), remove), VolumeStep{Phase: corev1.VolumeFailed, Message: noDeleter, Event: warning("VolumeFailedDelete", "%s", noDeleter)}},
		{"told already", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeFailed), remove), VolumeStep{}},
		{"its provisioner deletes it", world{}, volume("v", "1Gi", mine, phase(corev1.VolumeBound), remove, with(func(v *corev1.PersistentVolume) { v.Annotations["pv.kubernetes.io/provisioned-by"] = "csi.example" })), VolumeStep{Phase: corev1.VolumeReleased}},
		{"its device deletes it", world{nodes: []*corev1.Node{node("m"), node("n")}}, volume("v", "1Gi", mine, madeHere, phase(corev1.VolumeReleased)), VolumeStep{}},
		{"its device is gone", world{nodes: []*corev1.Node{node("m")}}, volume("v", "1Gi", mine, madeHere, phase(corev1.VolumeReleased)), VolumeStep{Forget: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Volume(tt.w, tt.volume); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}
