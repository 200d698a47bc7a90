package agent

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The kubelet's reasons and messages for a Pod that was put on the device past the
// scheduler.
const (
	portsTaken        = "NodePorts"
	portsTakenMessage = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
	otherOS           = "PodOSNotSupported"
	otherOSMessage    = "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"
)

// refused says why a Pod must not begin on the device: it is for another operating
// system, or others, which run or are about to, have its host ports. One that has
// begun is never refused, nor is one for the sake of a Pod that is on its way out.
func refused(p *corev1.Pod, others []*corev1.Pod) (reason, message string) {
	if p.Status.StartTime != nil || p.DeletionTimestamp != nil || isOver(p) {
		return "", ""
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		return otherOS, otherOSMessage
	}
	ports := hostPorts(p)
	if len(ports) == 0 {
		return "", ""
	}
	for _, o := range others {
		if o.UID == p.UID || o.DeletionTimestamp != nil || isOver(o) {
			continue
		}
		for _, theirs := range hostPorts(o) {
			if slices.ContainsFunc(ports, theirs.collides) {
				return portsTaken, portsTakenMessage
			}
		}
	}
	return "", ""
}

func isOver(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

type hostPort struct {
	ip       string // empty: all
	port     int32
	protocol corev1.Protocol
}

func (a hostPort) collides(b hostPort) bool {
	return a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || a.ip == "" || b.ip == "")
}

// hostPorts are the ports of the device that a Pod takes. Those of init containers that
// have ended by the time others run do not count, as for the scheduler and upstream.
func hostPorts(p *corev1.Pod) []hostPort {
	var out []hostPort
	for i, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if i < len(p.Spec.InitContainers) && !sidecar {
			continue
		}
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := hostPort{port.HostIP, port.HostPort, port.Protocol}
			if h.ip == "0.0.0.0" || h.ip == "::" {
				h.ip = ""
			}
			if h.protocol == "" {
				h.protocol = corev1.ProtocolTCP
			}
			out = append(out, h)
		}
	}
	return out
}
