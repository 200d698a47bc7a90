package podset

import (
	"k8s.io/apimachinery/pkg/labels"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// Keys tells which owners a change of an object concerns: the controllers of
// its old and new state, and those that would adopt it if it has none.
// selectors gives the owners of the namespace that select the labels.
func Keys[T Object](e registry.Event[T], kind string, selectors func(ns string, set labels.Set) []string, add func(key string)) {
	var oldUID string
	if any(e.Old) != any(*new(T)) {
		if ref := metav1.GetControllerOfNoCopy(e.Old); ref != nil && ref.Kind == kind {
			oldUID = string(ref.UID)
			add(e.Old.GetNamespace() + "/" + ref.Name)
		}
	}
	o := e.Object
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
		if ref.Kind == kind && string(ref.UID) != oldUID {
			add(o.GetNamespace() + "/" + ref.Name)
		}
		return
	}
	if o.GetDeletionTimestamp() != nil {
		return
	}
	for _, key := range selectors(o.GetNamespace(), o.GetLabels()) {
		add(key)
	}
}

// Selecting returns the keys of the namespace's owners whose selector matches
// the labels; it is meant for Keys.
func Selecting[T Object](owners registry.Client[T], selector func(T) labels.Selector) func(ns string, set labels.Set) []string {
	return func(ns string, set labels.Set) []string {
		var keys []string
		for _, o := range owners.List(ns) {
			if s := selector(o); !s.Empty() && s.Matches(set) {
				keys = append(keys, o.GetNamespace()+"/"+o.GetName())
			}
		}
		return keys
	}
}
