package evict

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"

	"edged/runtime/engine"
)

// localUse is what a Pod has on the disk, in bytes.
type localUse struct {
	volumes    map[string]int64 // emptyDirs on the disk
	containers map[string]int64 // writable layer and log
}

// total is what counts against the limits of the Pod's containers together.
func (u localUse) total() (n int64) {
	for _, b := range u.volumes {
		n += b
	}
	for _, b := range u.containers {
		n += b
	}
	return n
}

// isLimited reports whether a Pod may use only so much of the disk. Others are not
// measured.
func isLimited(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if onDisk(&p.Spec.Volumes[i]) && sizeLimit(&p.Spec.Volumes[i]) != nil {
			return true
		}
	}
	for _, c := range limitedContainers(p) {
		if !c.Resources.Limits.StorageEphemeral().IsZero() {
			return true
		}
	}
	return false
}

// onDisk: the kernel itself bounds an emptyDir in memory.
func onDisk(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory
}

func sizeLimit(v *corev1.Volume) *resource.Quantity {
	if s := v.EmptyDir.SizeLimit; s != nil && s.Sign() > 0 {
		return s
	}
	return nil
}

// limitedContainers are those that run as long as the Pod does.
func limitedContainers(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	for i := range p.Spec.Containers {
		out = append(out, &p.Spec.Containers[i])
	}
	return out
}

// exceeded says which limit a Pod is over, in the kubelet's order and words; "" if
// none.
func exceeded(p *corev1.Pod, u localUse) string {
	over := func(bytes int64, limit resource.Quantity) bool {
		return resource.NewQuantity(bytes, resource.BinarySI).Cmp(limit) > 0
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if !onDisk(v) {
			continue
		}
		if limit := sizeLimit(v); limit != nil && over(u.volumes[v.Name], *limit) {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	limits := helper.PodLimits(p, helper.PodResourcesOptions{})
	if limit, ok := limits[corev1.ResourceEphemeralStorage]; ok && over(u.total(), limit) {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range limitedContainers(p) {
		if limit := c.Resources.Limits.StorageEphemeral(); !limit.IsZero() && over(u.containers[c.Name], *limit) {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

// enforceLimits ends the Pods that use more of the disk than they may.
func (m *Manager) enforceLimits(ctx context.Context) {
	limited := map[string]*corev1.Pod{}
	for _, p := range m.cfg.Pods.Pods() {
		if isLimited(p) && mayEnd(p) && !critical(p) {
			limited[string(p.UID)] = p
		}
	}
	for uid := range m.overLimit {
		if limited[uid] == nil {
			delete(m.overLimit, uid)
		}
	}
	if len(limited) == 0 {
		return
	}
	layers := map[string]map[string]int64{}
	for _, c := range m.cfg.Engine.List() {
		uid, name := m.cfg.Owner(c)
		if limited[uid] == nil || c.State != engine.Running {
			continue
		}
		if layers[uid] == nil {
			layers[uid] = map[string]int64{}
		}
		if n, err := m.cfg.Engine.WritableLayer(ctx, c.ID); err == nil { // it may be gone by now
			layers[uid][name] = n
		}
	}
	for uid, p := range limited {
		if m.overLimit[uid] {
			continue
		}
		u := localUse{volumes: map[string]int64{}, containers: map[string]int64{}}
		for i := range p.Spec.Volumes {
			if v := &p.Spec.Volumes[i]; onDisk(v) {
				u.volumes[v.Name] = size(m.cfg.Volume(p, v.Name))
			}
		}
		for name, n := range layers[uid] {
			u.containers[name] = n + size(m.cfg.Log(p, name))
		}
		if why := exceeded(p, u); why != "" {
			m.cfg.Logger.Warn("a Pod is ended because it uses more of the disk than it may", "pod", p.Namespace+"/"+p.Name, "why", why)
			m.overLimit[uid] = true
			m.cfg.Pods.Evict(uid, why, false)
		}
	}
}

// mayEnd: neither over nor on its way out.
func mayEnd(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded
}
