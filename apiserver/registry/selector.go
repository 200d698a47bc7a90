package registry

import (
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"edged/apiserver/objcache"
)

// selection is what a list or watch asks for, in terms of the cache.
type selection struct {
	kind   *Kind
	gvk    schema.GroupVersionKind // as requested
	labels labels.Selector         // nil: all
	fields fields.Selector         // nil: all
	// prefix of the keys that can match; exact: there is at most one.
	prefix string
	exact  bool
	node   string // the node that the Pods must be on, if the selector says so
}

// newSelection translates field names of the requested version, as upstream
// does with the same errors, and narrows the keys to look at.
func newSelection(c *call, opts *ListOptions) (*selection, error) {
	s := &selection{kind: c.kind, gvk: schema.GroupVersionKind{Group: c.gr.Group, Version: c.version(), Kind: c.kind.GVK.Kind}}
	if opts.LabelSelector != nil && !opts.LabelSelector.Empty() {
		s.labels = opts.LabelSelector
	}
	ns := c.ns
	if opts.FieldSelector != nil && !opts.FieldSelector.Empty() {
		translated, err := opts.FieldSelector.Transform(func(label, value string) (string, string, error) {
			return c.kind.fieldLabel(s.gvk, label, value)
		})
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		s.fields = translated
		if v, ok := translated.RequiresExactMatch("metadata.namespace"); ok && ns == "" && c.kind.Namespaced {
			ns = v
		}
		s.node, _ = translated.RequiresExactMatch("spec.nodeName")
		if v, ok := translated.RequiresExactMatch("metadata.name"); ok && (ns != "" || !c.kind.Namespaced) {
			s.prefix, s.exact = c.kind.key(ns, v), true
			return s, nil
		}
	}
	if ns != "" && c.kind.Namespaced {
		s.prefix = ns + "/"
	}
	return s, nil
}

// entries are the cached candidates and their revision.
func (s *selection) entries() ([]*objcache.Entry, int64) {
	switch {
	case s.exact:
		return s.kind.set.GetAll(s.prefix)
	case s.node != "" && s.kind.Indexes[IndexNode] != nil:
		return s.kind.set.ByIndexSorted(IndexNode, s.node)
	}
	return s.kind.set.List(s.prefix)
}

// holds reports whether key lies in the selection's range.
func (s *selection) holds(key string) bool {
	if s.exact {
		return key == s.prefix
	}
	return strings.HasPrefix(key, s.prefix)
}

// all reports whether every object in the range matches.
func (s *selection) all() bool { return s.labels == nil && s.fields == nil }

// matches reports whether obj is selected, given that its key is in range.
func (s *selection) matches(obj runtime.Object) bool {
	if obj == nil {
		return false
	}
	if s.labels != nil {
		m, err := meta.Accessor(obj)
		if err != nil || !s.labels.Matches(labels.Set(m.GetLabels())) {
			return false
		}
	}
	return s.fields == nil || s.fields.Matches(s.kind.fieldSet(obj, s.gvk))
}
