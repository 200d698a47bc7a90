// Package ephemeralvolume makes the claims of Pods' generic ephemeral volumes.
//
// The claim is the Pod's and goes with it; it is bound as any other.
//
// Goroutines: those of the loop.Queue. May be imported by: controller.
//
// Sources: k8s.io/kubernetes/pkg/controller/volume/ephemeral.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-helpers/storage/ephemeral"

	"edged/apiserver/registry"
	"edged/apiserver/registry/recorder"
	"edged/controller/loop"
)

// Claims are those of the Pod's ephemeral volumes, by the volume's name.
func Claims(pod *corev1.Pod) map[string]*corev1.PersistentVolumeClaim {
	out := map[string]*corev1.PersistentVolumeClaim{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		t := v.Ephemeral.VolumeClaimTemplate.DeepCopy()
		out[v.Name] = &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{
				Name: ephemeral.VolumeClaimName(pod, v), Namespace: pod.Namespace, Annotations: t.Annotations, Labels: t.Labels,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(pod, corev1.SchemeGroupVersion.WithKind("Pod"))},
			},
			Spec: t.Spec,
		}
	}
	return out
}

// Run is the controller.
func Run(ctx context.Context, env loop.Env) error {
	pods := registry.For[*corev1.Pod](env.Registry)
	claims := registry.For[*corev1.PersistentVolumeClaim](env.Registry)
	events := env.Events.Component("ephemeral_volume")
	q := loop.NewQueue(loop.Config{Name: "ephemeralvolume", Logger: env.Logger, Reconcile: func(ctx context.Context, key string) (time.Duration, error) {
		pod, ok := pods.Get(loop.SplitKey(key))
		if !ok || pod.DeletionTimestamp != nil {
			return 0, nil
		}
		var errs []error
		for name, want := range Claims(pod) {
			have, ok := claims.Get(want.Namespace, want.Name)
			var err error
			if ok {
				err = ephemeral.VolumeIsForPod(pod, have)
			} else if _, err = claims.Create(ctx, want); err != nil && !apierrors.IsAlreadyExists(err) {
				err = fmt.Errorf("create PVC %s: %w", want.Name, err)
			}
			if err != nil {
				events.Eventf(recorder.Reference("v1", "Pod", pod, ""), corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", name, err)
				errs = append(errs, fmt.Errorf("ephemeral volume %s: %w", name, err))
			}
		}
		return 0, errors.Join(errs...)
	}})
	defer pods.Subscribe(func(e registry.Event[*corev1.Pod]) {
		if e.Type == watch.Added && slices.ContainsFunc(e.Object.Spec.Volumes, func(v corev1.Volume) bool { return v.Ephemeral != nil }) {
			q.Add(loop.KeyOf(e.Object))
		}
	})()
	defer claims.Subscribe(func(e registry.Event[*corev1.PersistentVolumeClaim]) {
		if owner := metav1.GetControllerOfNoCopy(e.Object); e.Type == watch.Deleted && owner != nil && owner.Kind == "Pod" {
			q.Add(loop.Key(e.Object.Namespace, owner.Name))
		}
	})()
	return q.Run(ctx)
}
