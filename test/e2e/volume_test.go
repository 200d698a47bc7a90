package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"edged/test/harness"
)

// claimAndPod are a claim, and a Pod that runs script with its volume at /data.
func claimAndPod(claim, pod, more, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  %s
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, %q]
    volumeMounts: [{name: v, mountPath: /data}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: %s}}]
`, claim, pod, more, script, claim)
}

// volumeDir is where a device has the volume of a claim.
func volumeDir(p *place, d *harness.Device, claim string) string {
	p.t.Helper()
	return filepath.Join(d.DataDir(), "volumes", p.kubectl("get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}"))
}

func absent(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is there: %v", path, err)
	}
	return nil
}

// TestVolumeOutlivesItsPod: a claim that names no class gets a folder on the device's
// disk, which other Pods see later, and which goes with the claim but not before its
// last Pod.
func TestVolumeOutlivesItsPod(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if out := p.kubectl("get", "storageclass"); !strings.Contains(out, "local-path (default)   edged.dev/local-path   Delete          WaitForFirstConsumer   false") {
		t.Errorf("get storageclass:\n%s", out)
	}
	p.apply(claimAndPod("data", "writer", "securityContext: {runAsUser: 1000, runAsNonRoot: true}", "mkdir /data/sub && echo kept > /data/sub/file && sleep 100000"))
	p.waitReady("writer")
	if out := p.kubectl("get", "pvc", "data"); !strings.Contains(out, "Bound") || !strings.Contains(out, "RWO            local-path") {
		t.Errorf("get pvc:\n%s", out)
	}
	out := p.kubectl("describe", "pvc", "data")
	for _, want := range []string{"Status:        Bound", "Finalizers:    [kubernetes.io/pvc-protection]", "Used By:       writer", "WaitForFirstConsumer", "ProvisioningSucceeded", "selected-node"} {
		if !strings.Contains(out, want) {
			t.Errorf("describe pvc does not say %q:\n%s", want, out)
		}
	}
	volume := p.kubectl("get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}")
	if out := p.kubectl("get", "pv", volume); !strings.Contains(out, "1Gi        RWO            Delete           Bound    "+p.ns+"/data") {
		t.Errorf("get pv:\n%s", out)
	}
	dir := volumeDir(p, p.Device, "data")
	p.kubectl("delete", "pod", "writer")
	p.apply(claimAndPod("data", "reader", "securityContext: {runAsUser: 2000, fsGroup: 3000, supplementalGroups: []}", "cat /data/sub/file && echo more >> /data/sub/file && stat -c '%g %a' /data/sub && sleep 100000"))
	p.waitReady("reader")
	p.eventually(30*time.Second, "read", func() error {
		if out, err := p.Kubectl("", "-n", p.ns, "logs", "reader"); err != nil || out != "kept\n3000 2775\n" {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	p.kubectl("delete", "pvc", "data", "--wait=false")
	if out := p.kubectl("get", "pvc", "data"); !strings.Contains(out, "Terminating") {
		t.Errorf("a claim that a Pod uses, being deleted:\n%s", out)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "sub", "file")); string(data) != "kept\nmore\n" {
		t.Errorf("on the disk: %q, %v", data, err)
	}
	p.kubectl("delete", "pod", "reader")
	p.eventually(60*time.Second, "removed", func() error {
		if out, err := p.Kubectl("", "get", "pv", volume, "--ignore-not-found"); err != nil || out != "" {
			return fmt.Errorf("%s%v", out, err)
		}
		return absent(dir)
	})
	if out := p.kubectl("get", "pvc", "data", "--ignore-not-found"); out != "" {
		t.Errorf("the claim is still there:\n%s", out)
	}
}

// TestVolumesRefused: what a device cannot do is told where people look.
func TestVolumesRefused(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	told := func(object, want string) {
		t.Helper()
		p.eventually(60*time.Second, "told "+want, func() error {
			if out := p.kubectl("describe", object); !strings.Contains(out, want) {
				return errors.New(out)
			}
			return nil
		})
	}
	p.apply(strings.Replace(claimAndPod("shared", "one", "", "sleep 100000"), "ReadWriteOnce", "ReadWriteMany", 1))
	told("pvc/shared", "not ReadWriteMany")
	t.Cleanup(func() { p.MustKubectl("", "delete", "pv", p.ns+"-nfs", "--ignore-not-found", "--wait=false") })
	p.apply(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: ` + p.ns + `-nfs}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: ` + p.ns + `, name: nfs}
  nfs: {server: 192.0.2.1, path: /}
` + "---" + strings.Replace(claimAndPod("nfs", "two", "", "sleep 100000"), "spec:\n", "spec:\n  storageClassName: \"\"\n  volumeName: "+p.ns+"-nfs\n", 1))
	told("pod/two", "of PersistentVolumes edged has local and hostPath")
	if pod := p.pod("two"); pod.Status.Phase != corev1.PodPending {
		t.Errorf("phase %s", pod.Status.Phase)
	}
}

// TestEphemeralVolume: a Pod's ephemeral volume is a claim that goes with it.
func TestEphemeralVolume(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.apply(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: edged.example/busybox:1
    command: [sh, -c, "echo a > /data/b && sleep 100000"]
    volumeMounts: [{name: scratch, mountPath: /data}]
  volumes:
  - name: scratch
    ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Mi}}}}}
`)
	p.waitReady("p")
	dir := volumeDir(p, p.Device, "p-scratch")
	if data, err := os.ReadFile(filepath.Join(dir, "b")); string(data) != "a\n" {
		t.Errorf("on the disk: %q, %v", data, err)
	}
	p.kubectl("delete", "pod", "p")
	p.eventually(60*time.Second, "removed", func() error { return absent(dir) })
}

const database = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete, whenScaled: Retain}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: edged.example/busybox:1
        command: [sh, -c, 'echo $(hostname) >> /data/log; sleep 100000']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`

// TestStatefulSetVolumes: each Pod of a StatefulSet keeps its volume, through restarts
// and scaling; they go with the set if it says so.
func TestStatefulSetVolumes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.apply(database)
	p.waitReady("db-1")
	dirs := []string{volumeDir(p, p.Device, "data-db-0"), volumeDir(p, p.Device, "data-db-1")}
	p.kubectl("scale", "statefulset/db", "--replicas=1")
	p.eventually(60*time.Second, "scaled down", func() error {
		if out := p.kubectl("get", "pod", "db-1", "--ignore-not-found"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	p.kubectl("delete", "pod", "db-0")
	p.kubectl("scale", "statefulset/db", "--replicas=2")
	p.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
	for i, dir := range dirs {
		want := strings.Repeat(fmt.Sprintf("db-%d\n", i), 2)
		p.eventually(30*time.Second, "written", func() error {
			if data, err := os.ReadFile(filepath.Join(dir, "log")); string(data) != want {
				return fmt.Errorf("%s: %q, %v", dir, data, err)
			}
			return nil
		})
	}
	p.kubectl("delete", "statefulset", "db")
	p.eventually(60*time.Second, "removed", func() error {
		if out := p.kubectl("get", "pvc"); out != "" {
			return errors.New(out)
		}
		return errors.Join(absent(dirs[0]), absent(dirs[1]))
	})
}

// TestKilledWhileProvisioning: wherever the daemon is killed between the claims and the
// running Pods, all of them run afterwards, and nothing is left when they are deleted.
func TestKilledWhileProvisioning(t *testing.T) {
	t.Parallel()
	d := harness.Lone(t)
	d.ImportBusybox()
	p := placeOn(t, d)
	const n = 8
	for round, reached := range []string{"claims", "selected", "volumes", "pods"} {
		var manifest strings.Builder
		for i := range n {
			manifest.WriteString("---" + claimAndPod(fmt.Sprintf("c%d-%d", round, i), fmt.Sprintf("p%d-%d", round, i), "", "sleep 100000"))
		}
		p.apply(manifest.String())
		p.eventually(60*time.Second, "as far as "+reached, func() error {
			folders, _ := os.ReadDir(filepath.Join(d.DataDir(), "volumes"))
			var seen int
			switch reached {
			case "claims":
				return nil
			case "selected":
				seen = strings.Count(p.kubectl("get", "pvc", "-o", "yaml"), "volume.kubernetes.io/selected-node:") - round*n
			case "volumes":
				seen = len(folders) - round*n
			case "pods":
				seen = strings.Count(p.kubectl("get", "pod"), "Running") - round*n
			}
			if seen == 0 {
				return errors.New("nothing yet")
			}
			return nil
		})
		d.Kill()
		d.Start()
		d.WaitReady()
		for i := range n {
			p.waitReady(fmt.Sprintf("p%d-%d", round, i))
		}
	}
	p.kubectl("delete", "pod,pvc", "--all", "--wait=false")
	d.Kill()
	d.Start()
	d.WaitReady()
	p.eventually(60*time.Second, "removed", func() error {
		folders, err := os.ReadDir(filepath.Join(d.DataDir(), "volumes"))
		if volumes := p.kubectl("get", "pv"); err != nil || len(folders) > 0 || volumes != "" {
			return fmt.Errorf("%v %v\n%s", folders, err, volumes)
		}
		return nil
	})
}

// TestVolumesOfTwoDevices: a Pod goes where its volume is and waits for that device; a
// volume that is given up while its device is away is removed when it comes back.
func TestVolumesOfTwoDevices(t *testing.T) {
	t.Parallel()
	devices := newCluster(t, 2)
	for _, d := range devices {
		d.ImportBusybox()
	}
	p, away := placeOn(t, devices[0]), devices[1]
	p.apply(claimAndPod("data", "first", "nodeSelector: {kubernetes.io/hostname: "+away.Name+"}", "echo kept > /data/file && sleep 100000"))
	p.waitReady("first")
	dir := volumeDir(p, away, "data")
	if data, err := os.ReadFile(filepath.Join(dir, "file")); string(data) != "kept\n" {
		t.Errorf("on the disk: %q, %v", data, err)
	}
	p.kubectl("delete", "pod", "first")
	p.apply(claimAndPod("data", "second", "", "cat /data/file && sleep 100000"))
	if pod := p.waitReady("second"); pod.Spec.NodeName != away.Name {
		t.Errorf("the Pod is on %s, its volume on %s", pod.Spec.NodeName, away.Name)
	}
	p.kubectl("delete", "pod", "second")
	away.Kill()
	p.kubectl("wait", "--for=condition=Ready=Unknown", "node/"+away.Name, "--timeout=60s")
	p.apply(claimAndPod("data", "third", "", "sleep 100000"))
	p.eventually(60*time.Second, "waiting for the device", func() error {
		if out := p.kubectl("describe", "pod", "third"); !strings.Contains(out, "1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) had untolerated taint(s)") {
			return errors.New(out)
		}
		return nil
	})
	p.kubectl("delete", "pod,pvc", "--all", "--grace-period=0", "--force")
	p.eventually(60*time.Second, "given up", func() error {
		if out := p.MustKubectl("", "get", "pv"); !strings.Contains(out, "Released") {
			return errors.New(out)
		}
		return nil
	})
	away.Start()
	away.WaitReady()
	p.eventually(60*time.Second, "removed", func() error {
		if out := p.MustKubectl("", "get", "pv"); out != "" {
			return errors.New(out)
		}
		return absent(dir)
	})
}
