package apiserver

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// components are the ComponentStatuses that upstream's API server shows. Here a
// leader is what runs scheduler and controllers; the store is this device's replica.
func (s *Server) components() []runtime.Object {
	var store, leader error
	for _, c := range s.cfg.Checks {
		if c.Name == "etcd" {
			store = c.Check()
		}
	}
	if s.cfg.Leader != nil {
		leader = s.cfg.Leader()
	}
	var out []runtime.Object
	for _, c := range []struct {
		name string
		err  error
	}{{"controller-manager", leader}, {"etcd-0", store}, {"scheduler", leader}} {
		condition := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
		if c.err != nil {
			condition = corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionFalse, Error: c.err.Error()}
		}
		out = append(out, &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: c.name}, Conditions: []corev1.ComponentCondition{condition}})
	}
	return out
}
