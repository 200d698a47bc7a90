package main

import (
	"crypto/sha256"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
)

// nodeLeaseSeconds is the kubelet's default.
const nodeLeaseSeconds = 40

// nodeLeases are the Leases of kube-node-lease, one for each device, renewed when
// something was heard of it last. No device writes any: liveness is in Raft's own
// traffic. Devices that do not lead hear of the leader only, and believe what it
// says of the others.
func (d *device) nodeLeases() []runtime.Object {
	var out []runtime.Object
	leading := d.store.Leader() == d.store.MemberID()
	for _, n := range registry.For[*corev1.Node](d.registry).List("") {
		heard, _, ok := d.store.Heard(n.Name)
		if !ok {
			continue // not a device
		}
		if !leading {
			heard = believed(n, heard, time.Now())
		}
		if !heard.IsZero() {
			heard = d.clock.Now().Add(-time.Since(heard))
		}
		out = append(out, nodeLease(n, heard))
	}
	return out
}

// believed is when a device was heard of, by its Node.
func believed(n *corev1.Node, heard, now time.Time) time.Time {
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status != corev1.ConditionUnknown {
			return now
		}
		if t := c.LastTransitionTime.Time; t.After(heard) {
			return t
		}
	}
	return heard
}

func nodeLease(n *corev1.Node, heard time.Time) *coordinationv1.Lease {
	sum := sha256.Sum256([]byte("lease of " + n.UID)) // the same on all devices
	uid := types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
	l := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, Namespace: corev1.NamespaceNodeLease, UID: uid, ResourceVersion: n.ResourceVersion, CreationTimestamp: n.CreationTimestamp,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.Name, LeaseDurationSeconds: ptr.To[int32](nodeLeaseSeconds)},
	}
	if !heard.IsZero() {
		l.Spec.RenewTime = &metav1.MicroTime{Time: heard.UTC().Truncate(time.Microsecond)}
	}
	return l
}
