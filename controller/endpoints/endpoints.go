// Package endpoints keeps the Endpoints of Services that select Pods: the older
// shape of EndpointSlices, for programs that still read it.
//
// Reconcile is the decision; what counts as an endpoint is decided in
// controller/endpointslice.
//
// Promises: at rest nothing is written; at most 1000 addresses, and then the
// annotation that says so.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/endpoint.
package endpoints

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	utilnet "k8s.io/utils/net"
	"k8s.io/utils/ptr"

	"edged/apiserver/registry"
	"edged/controller/endpointslice"
	"edged/controller/loop"
	"edged/controller/podset"
)

const (
	managedBy  = "endpoints.kubernetes.io/managed-by"
	controller = "endpoint-controller"
	// maxAddresses is upstream's bound.
	maxAddresses = 1000
	truncated    = "truncated"
	// goneSuffix on a key says that the Service was seen to go: its Endpoints
	// go too, whoever made them. Others may be somebody's own.
	goneSuffix = "/gone"
)

// Reconcile makes e, a private copy of what is stored or a new object, the
// Endpoints of svc.
func Reconcile(svc *corev1.Service, pods []*corev1.Pod, e *corev1.Endpoints) {
	subsets := Subsets(svc, pods)
	over := truncate(subsets)
	if !equality.Semantic.DeepEqual(e.Subsets, subsets) {
		e.Subsets = subsets
	}
	labels := maps.Clone(svc.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	delete(labels, corev1.IsHeadlessService)
	if endpointslice.IsHeadless(svc) {
		labels[corev1.IsHeadlessService] = ""
	}
	labels[managedBy] = controller
	if !maps.Equal(e.Labels, labels) {
		e.Labels = labels
	}
	if has := e.Annotations[corev1.EndpointsOverCapacity] != ""; over && !has {
		if e.Annotations == nil {
			e.Annotations = map[string]string{}
		}
		e.Annotations[corev1.EndpointsOverCapacity] = truncated
	} else if has && !over {
		delete(e.Annotations, corev1.EndpointsOverCapacity)
	}
}

// Subsets groups the addresses of a Service by what their ports are.
func Subsets(svc *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	v6 := len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	byPorts := map[string]*corev1.EndpointSubset{}
	for _, pod := range pods {
		ip := podIP(pod, v6)
		if ip == "" || !endpointslice.InEndpoints(pod, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		ports, ok := endpointslice.PodPorts(svc, pod)
		if !ok {
			continue
		}
		key := endpointslice.PortsKey(ports)
		s := byPorts[key]
		if s == nil {
			s = &corev1.EndpointSubset{}
			for _, p := range endpointslice.SortPorts(ports) {
				s.Ports = append(s.Ports, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
			}
			byPorts[key] = s
		}
		a := corev1.EndpointAddress{IP: ip, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}}
		if pod.Spec.NodeName != "" {
			a.NodeName = ptr.To(pod.Spec.NodeName)
		}
		if endpointslice.HasHostname(svc, pod) {
			a.Hostname = pod.Spec.Hostname
		}
		if svc.Spec.PublishNotReadyAddresses || podset.IsReady(pod) {
			s.Addresses = append(s.Addresses, a)
		} else {
			s.NotReadyAddresses = append(s.NotReadyAddresses, a)
		}
	}
	var out []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		s := byPorts[key]
		slices.SortFunc(s.Addresses, byIP)
		slices.SortFunc(s.NotReadyAddresses, byIP)
		out = append(out, *s)
	}
	return out
}

func byIP(a, b corev1.EndpointAddress) int {
	if d := cmp.Compare(a.IP, b.IP); d != 0 {
		return d
	}
	return cmp.Compare(a.TargetRef.UID, b.TargetRef.UID)
}

func podIP(pod *corev1.Pod, v6 bool) string {
	ips := pod.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if ip.IP != "" && utilnet.IsIPv6String(ip.IP) == v6 {
			return ip.IP
		}
	}
	return ""
}

// truncate keeps maxAddresses, ready ones first, and reports whether there were
// more.
func truncate(subsets []corev1.EndpointSubset) bool {
	room, over := maxAddresses, false
	for _, ready := range []bool{true, false} {
		for i := range subsets {
			list := &subsets[i].NotReadyAddresses
			if ready {
				list = &subsets[i].Addresses
			}
			if len(*list) > room {
				*list, over = (*list)[:room], true
			}
			room -= len(*list)
		}
	}
	return over
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	services := registry.For[*corev1.Service](env.Registry)
	pods := registry.For[*corev1.Pod](env.Registry)
	endpoints := registry.For[*corev1.Endpoints](env.Registry)
	q := loop.NewQueue(loop.Config{Name: "endpoints", Logger: env.Logger, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		ns, name := loop.SplitKey(key)
		name, gone := strings.CutSuffix(name, goneSuffix)
		svc, ok := services.Get(ns, name)
		if !ok {
			return 0, remove(ctx, endpoints, ns, name, gone)
		}
		if !endpointslice.Managed(svc) {
			return 0, nil
		}
		return 0, write(ctx, endpoints, svc, endpointslice.Selected(pods, svc))
	}})
	defer services.Subscribe(func(e registry.Event[*corev1.Service]) {
		if e.Type == watch.Deleted {
			q.Add(loop.KeyOf(e.Object) + goneSuffix)
			return
		}
		q.Add(loop.KeyOf(e.Object))
	})()
	defer pods.Subscribe(endpointslice.ServiceOfPods(services, q))()
	defer endpoints.Subscribe(func(e registry.Event[*corev1.Endpoints]) {
		if e.Type != watch.Added {
			q.Add(loop.KeyOf(e.Object))
		} else if _, ok := services.Get(e.Object.Namespace, e.Object.Name); !ok {
			q.Add(loop.KeyOf(e.Object)) // its Service went while nobody led
		}
	})()
	return q.Run(ctx)
}

// remove deletes the Endpoints of a Service that is gone, unless somebody uses
// them as a lock.
func remove(ctx context.Context, endpoints registry.Client[*corev1.Endpoints], ns, name string, gone bool) error {
	e, ok := endpoints.Get(ns, name)
	if !ok || e.Annotations["control-plane.alpha.kubernetes.io/leader"] != "" || !gone && e.Labels[managedBy] != controller {
		return nil
	}
	err := endpoints.Delete(ctx, ns, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(e.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func write(ctx context.Context, endpoints registry.Client[*corev1.Endpoints], svc *corev1.Service, pods []*corev1.Pod) error {
	if _, ok := endpoints.Get(svc.Namespace, svc.Name); !ok {
		e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Namespace: svc.Namespace}}
		Reconcile(svc, pods, e)
		_, err := endpoints.Create(ctx, e)
		if podset.IsNamespaceEnding(err) {
			return nil
		}
		return err
	}
	_, err := endpoints.Update(ctx, svc.Namespace, svc.Name, func(e *corev1.Endpoints) error { Reconcile(svc, pods, e); return nil })
	return err
}
