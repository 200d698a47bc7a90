// Package revision keeps the history of a Pod template, as ControllerRevisions,
// for the controllers that roll back by it (DaemonSet, StatefulSet).
//
// It is not a controller: it decides what a history should look like and, in
// Ensure, writes it.
//
// Types: a History is what an owner's revisions say about its template as it is
// now.
//
// Promises: revisions have upstream's names, labels and data, so that `kubectl
// rollout history` and `undo` read them and a cluster may be handed over with no
// rollout. A history that is right writes nothing.
//
// It owns no goroutine. May be imported by: controller/....
//
// Sources: k8s.io/kubernetes/pkg/controller/history for behavior and names.
package revision

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"edged/apiserver/registry"
	"edged/controller/podset"
)

// Data is a template as a revision keeps it: the strategic merge patch that
// brings it back.
func Data(template *corev1.PodTemplateSpec) ([]byte, error) {
	raw, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encoding a Pod template: %w", err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("encoding a Pod template: %w", err)
	}
	m["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": m}})
}

// Template is the template that a revision keeps.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("reading ControllerRevision %s: %w", r.Name, err)
	}
	return &patch.Spec.Template, nil
}

// Name is the name of an owner's revision.
func Name(owner, hash string) string {
	const maxOwner = 223 // upstream's: leaves room for the hash
	if len(owner) > maxOwner {
		owner = owner[:maxOwner]
	}
	return owner + "-" + hash
}

// History is what the revisions say about a template.
type History struct {
	// Current is the revision of the template; nil if there is none yet.
	Current *appsv1.ControllerRevision
	// Number is what Current's number should be: higher than all others.
	Number int64
	// Old are the others, oldest first.
	Old []*appsv1.ControllerRevision
	// Same are further revisions of the template, made in a race or adopted.
	Same []*appsv1.ControllerRevision
}

// Of sorts an owner's revisions by what they are to the template with the data.
func Of(revisions []*appsv1.ControllerRevision, data []byte) History {
	revisions = slices.Clone(revisions)
	slices.SortFunc(revisions, older)
	var h History
	for _, r := range revisions {
		switch {
		case !bytes.Equal(r.Data.Raw, data):
			h.Old = append(h.Old, r)
			h.Number = r.Revision
		case h.Current == nil:
			h.Current = r
		default:
			h.Same = append(h.Same, h.Current)
			h.Current = r
		}
	}
	h.Number++
	if h.Current != nil {
		h.Number = max(h.Number, h.Current.Revision)
	}
	return h
}

func older(a, b *appsv1.ControllerRevision) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
}

// Keys tells which owners a change of a revision concerns, as podset.Keys. None is
// concerned by a revision that comes with its owner: whoever made it has dealt with
// it (a controller that looked at once would merge it with others of the same
// template before its maker could), nor by a change that says nothing new about the
// template.
func Keys(e registry.Event[*appsv1.ControllerRevision], kind string, selectors func(ns string, set labels.Set) []string, add func(key string)) {
	switch {
	case e.Type == watch.Added && metav1.GetControllerOfNoCopy(e.Object) != nil && e.Object.DeletionTimestamp == nil:
	case e.Type == watch.Modified && sameMeaning(e.Old, e.Object) &&
		slices.Equal(selectors(e.Old.Namespace, e.Old.Labels), selectors(e.Object.Namespace, e.Object.Labels)):
	default:
		podset.Keys(e, kind, selectors, add)
	}
}

func sameMeaning(a, b *appsv1.ControllerRevision) bool {
	const hash = appsv1.ControllerRevisionHashLabelKey
	return a.Revision == b.Revision && a.Labels[hash] == b.Labels[hash] && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		bytes.Equal(a.Data.Raw, b.Data.Raw) && equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences)
}

// Excess returns the n oldest of the revisions that are not in use.
func Excess(old []*appsv1.ControllerRevision, inUse func(*appsv1.ControllerRevision) bool, n int) []*appsv1.ControllerRevision {
	var out []*appsv1.ControllerRevision
	for _, r := range old {
		if len(out) < n && !inUse(r) {
			out = append(out, r)
		}
	}
	return out
}

// Ensure brings the history in order: it makes the current revision if it is
// missing, under the first name that is free, or renumbers it. make builds it
// for a number of collisions. The outcome is the current revision and the
// collisions that its name took.
func Ensure(ctx context.Context, client registry.Client[*appsv1.ControllerRevision], owner metav1.Object, h History, collisions int32, make func(collisions int32) *appsv1.ControllerRevision) (*appsv1.ControllerRevision, int32, error) {
	if cur := h.Current; cur != nil {
		if cur.Revision == h.Number {
			return cur, collisions, nil
		}
		out, err := client.Update(ctx, cur.Namespace, cur.Name, func(r *appsv1.ControllerRevision) error {
			r.Revision = max(r.Revision, h.Number)
			return nil
		})
		if err != nil {
			return nil, collisions, fmt.Errorf("renumbering ControllerRevision %s: %w", cur.Name, err)
		}
		return out, collisions, nil
	}
	const maxCollisions = 100 // of 32 bits: more is no accident
	for range maxCollisions {
		r := make(collisions)
		r.Revision = h.Number
		made, err := client.Create(ctx, r)
		switch {
		case err == nil:
			return made, collisions, nil
		case !apierrors.IsAlreadyExists(err):
			return nil, collisions, fmt.Errorf("making ControllerRevision %s: %w", r.Name, err)
		}
		if other, ok := client.Get(r.Namespace, r.Name); ok && metav1.IsControlledBy(other, owner) && bytes.Equal(other.Data.Raw, r.Data.Raw) {
			return other, collisions, nil
		}
		collisions++
	}
	return nil, collisions, fmt.Errorf("making a ControllerRevision of %s: %d names are taken", owner.GetName(), maxCollisions)
}

// Remove deletes revisions; one that is gone is fine.
func Remove(ctx context.Context, client registry.Client[*appsv1.ControllerRevision], revisions []*appsv1.ControllerRevision) error {
	for _, r := range revisions {
		err := client.Delete(ctx, r.Namespace, r.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(r.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting ControllerRevision %s: %w", r.Name, err)
		}
	}
	return nil
}
