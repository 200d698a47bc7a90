package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var groupVersion = schema.GroupVersion{Group: "operator.example", Version: "v1"}

// Shelf is what the operator looks after: a ConfigMap that holds its text once for
// each of its copies.
type Shelf struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   ShelfSpec   `json:"spec"`
	Status ShelfStatus `json:"status,omitzero"`
}

type ShelfSpec struct {
	Text   string `json:"text"`
	Copies int    `json:"copies,omitempty"` // the webhook's default is 1
}

type ShelfStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

type ShelfList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Shelf `json:"items"`
}

func (s *Shelf) copy() *Shelf {
	out := *s
	out.ObjectMeta = *s.ObjectMeta.DeepCopy()
	out.Status.Conditions = append([]metav1.Condition(nil), s.Status.Conditions...)
	return &out
}

func (s *Shelf) DeepCopyObject() runtime.Object { return s.copy() }

func (l *ShelfList) DeepCopyObject() runtime.Object {
	out := &ShelfList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].copy())
	}
	return out
}
