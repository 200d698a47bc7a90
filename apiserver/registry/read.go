package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"

	"edged/apiserver/objcache"
)

// futureWait is how long a read waits for a resourceVersion that this device
// has not seen yet, as upstream's watch cache does.
const futureWait = 3 * time.Second

// continueLifetime is how long a continue token works. Upstream's tokens end
// with the compaction of their revision, five to ten minutes later; an idle
// edged cluster does not compact, so the token carries its own end.
const continueLifetime = 5 * time.Minute

// storePage is how many objects are read at once from the store's history.
const storePage = 200

// ListResult is a list at one revision. Its items are shared.
type ListResult struct {
	Items    []runtime.Object
	Revision int64
	// Continue is the token for the rest; "" at the end.
	Continue string
	// Remaining is the number of objects after this page, if it is known.
	Remaining *int64
}

// Get returns an object. With no resourceVersion the answer is linearizable;
// with one it is from this device, and at least that new.
func (r *Registry) Get(ctx context.Context, gr schema.GroupResource, ns, name string, opts metav1.GetOptions) (runtime.Object, error) {
	return r.GetSubresource(ctx, gr, ns, name, "", opts)
}

// GetSubresource is Get of a subresource: the whole object for status, the
// subresource's own object for others.
func (r *Registry) GetSubresource(ctx context.Context, gr schema.GroupResource, ns, name, sub string, opts metav1.GetOptions) (runtime.Object, error) {
	c, err := r.begin(ctx, "get", gr, ns, name, sub)
	if err != nil {
		return nil, err
	}
	if err := r.atLeast(c.ctx, opts.ResourceVersion); err != nil {
		return nil, err
	}
	e, ok := c.kind.set.Get(c.kind.key(c.ns, name))
	if !ok {
		if o, ok := c.kind.getVirtual(c.kind.key(c.ns, name)); ok && sub == "" {
			return o, nil
		}
		return nil, apierrors.NewNotFound(c.gr, name)
	}
	if sub == "" {
		return e.Object, nil
	}
	s := c.kind.Subresources[sub]
	if s == nil {
		return nil, subresourceNotFound(c.gr, name)
	}
	if s.Projection != nil {
		return s.Projection.Get(e.Object)
	}
	return e.Object, nil
}

// atLeast waits until the cache is as new as a read with the given
// resourceVersion demands.
func (r *Registry) atLeast(ctx context.Context, rv string) error {
	if rv == "" {
		return r.freshOrStale(ctx)
	}
	revision, err := parseVersion(rv)
	if err != nil || revision == 0 {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, futureWait)
	defer cancel()
	if r.cache.WaitFor(wait, revision) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return storage.NewTooLargeResourceVersionError(uint64(revision), uint64(r.cache.Revision()), 1)
}

// List returns the selected objects, in order of their keys.
func (r *Registry) List(ctx context.Context, gr schema.GroupResource, ns string, opts ListOptions) (*ListResult, error) {
	c, err := r.begin(ctx, "list", gr, ns, "", "")
	if err != nil {
		return nil, err
	}
	opts.Watch = false
	if errs := metainternalvalidation.ValidateListOptions(&opts, true); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	sel, err := newSelection(c, &opts)
	if err != nil {
		return nil, err
	}
	switch {
	case opts.Continue != "":
		return r.listContinued(c, sel, &opts)
	case exactVersion(&opts):
		return r.listExact(c, sel, &opts)
	}
	if err := r.atLeast(c.ctx, opts.ResourceVersion); err != nil {
		return nil, err
	}
	limit := opts.Limit
	if opts.ResourceVersion == "0" {
		limit = 0 // upstream's watch cache, which answers these, knows no limit
	}
	entries, revision := sel.entries()
	return r.page(sel, sel.withVirtual(entries), revision, limit), nil
}

// exactVersion reports whether the list must show exactly the given revision.
// Before there was resourceVersionMatch, a limit meant that too.
func exactVersion(opts *ListOptions) bool {
	if opts.ResourceVersion == "" || opts.ResourceVersion == "0" {
		return false
	}
	return opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		opts.ResourceVersionMatch == "" && opts.Limit > 0
}

// page takes the first limit matches of entries, all if limit is 0.
func (r *Registry) page(sel *selection, entries []*objcache.Entry, revision, limit int64) *ListResult {
	size := len(entries)
	if limit > 0 && int(limit) < size {
		size = int(limit)
	}
	out := &ListResult{Items: make([]runtime.Object, 0, size), Revision: revision}
	last := ""
	for i, e := range entries {
		if !sel.all() && !sel.matches(e.Object) {
			continue
		}
		if limit > 0 && int64(len(out.Items)) == limit {
			out.Continue = r.continueToken(last, revision)
			if sel.all() {
				left := int64(len(entries) - i)
				out.Remaining = &left
			}
			return out
		}
		out.Items = append(out.Items, e.Object)
		last = e.Key
	}
	return out
}

// listExact reads the objects as they were at the asked-for revision.
func (r *Registry) listExact(c *call, sel *selection, opts *ListOptions) (*ListResult, error) {
	revision, err := parseVersion(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if err := r.atLeast(c.ctx, opts.ResourceVersion); err != nil {
		return nil, err
	}
	out, err := r.listHistory(c.ctx, sel, "", revision, opts.Limit)
	if errors.Is(err, objcache.ErrCompacted) {
		return nil, apierrors.NewResourceExpired(expiredList)
	}
	return out, err
}

// listContinued reads the next page at the revision of the first.
func (r *Registry) listContinued(c *call, sel *selection, opts *ListOptions) (*ListResult, error) {
	if opts.ResourceVersion != "" && opts.ResourceVersion != "0" {
		return nil, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	t, err := decodeContinue(opts.Continue)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	if t.Revision < 0 { // "go on at the newest state", from a 410
		if err := r.freshOrStale(c.ctx); err != nil {
			return nil, err
		}
		entries, revision := sel.entries()
		for len(entries) > 0 && entries[0].Key <= t.after() {
			entries = entries[1:]
		}
		return r.page(sel, entries, revision, opts.Limit), nil
	}
	expired := t.Issued != 0 && r.now().Sub(time.Unix(t.Issued, 0)) > continueLifetime
	var out *ListResult
	if !expired {
		out, err = r.listHistory(c.ctx, sel, t.after(), t.Revision, opts.Limit)
		expired = errors.Is(err, objcache.ErrCompacted)
	}
	if expired {
		gone := apierrors.NewResourceExpired(inconsistentContinue)
		gone.ErrStatus.ListMeta.Continue = r.continueToken(t.after(), -1)
		return nil, gone
	}
	return out, err
}

// listHistory reads the objects after the key `after` at a revision from the
// store, decoding them for this list only.
func (r *Registry) listHistory(ctx context.Context, sel *selection, after string, revision, limit int64) (*ListResult, error) {
	out := &ListResult{Revision: revision}
	prefix := sel.kind.keyPrefix()
	from, end := []byte(prefix+sel.prefix), objcache.PrefixEnd([]byte(prefix+sel.prefix))
	if sel.exact {
		end = nil
	}
	if after != "" {
		from = append([]byte(prefix+after), 0)
	}
	last := ""
	for {
		resp, err := r.store.Range(ctx, &pb.RangeRequest{Key: from, RangeEnd: end, Revision: revision, Limit: storePage})
		if err != nil {
			if errors.Is(err, objcache.ErrCompacted) {
				return nil, err
			}
			return nil, storeError(err)
		}
		for i, kv := range resp.Kvs {
			e, err := sel.kind.set.Decode(kv)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			if !sel.matches(e.Object) {
				continue
			}
			if limit > 0 && int64(len(out.Items)) == limit {
				out.Continue = r.continueToken(last, revision)
				if sel.all() {
					left := resp.Count - int64(i)
					out.Remaining = &left
				}
				return out, nil
			}
			out.Items = append(out.Items, e.Object)
			last = e.Key
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return out, nil
		}
		from = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
}

// continueToken is upstream's token with the time it was issued at.
type continueToken struct {
	APIVersion string `json:"v"`
	Revision   int64  `json:"rv"`
	StartKey   string `json:"start"`
	Issued     int64  `json:"t,omitempty"`
}

// after is the key, within the kind's prefix, after which the list goes on.
func (t continueToken) after() string {
	if n := len(t.StartKey); n > 0 && t.StartKey[n-1] == 0 {
		return t.StartKey[:n-1]
	}
	return t.StartKey
}

func (r *Registry) continueToken(after string, revision int64) string {
	t := continueToken{APIVersion: "meta.k8s.io/v1", Revision: revision, StartKey: after + "\x00"}
	if revision > 0 {
		t.Issued = r.now().Unix()
	}
	data, err := json.Marshal(t)
	if err != nil {
		return "" // a struct of strings and integers always marshals
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func decodeContinue(token string) (continueToken, error) {
	var t continueToken
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return t, fmt.Errorf("%w: %v", storage.ErrGenericInvalidKey, err)
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, fmt.Errorf("%w: %v", storage.ErrGenericInvalidKey, err)
	}
	switch {
	case t.APIVersion != "meta.k8s.io/v1":
		return t, fmt.Errorf("%w %v", storage.ErrUnrecognizedEncodedVersion, t.APIVersion)
	case t.Revision == 0:
		return t, storage.ErrInvalidStartRV
	case t.StartKey == "":
		return t, storage.ErrEmptyStartKey
	}
	return t, nil
}

// version is the API version that the request names.
func (c *call) version() string {
	if info, ok := request.RequestInfoFrom(c.ctx); ok && info.APIVersion != "" {
		return info.APIVersion
	}
	return c.kind.versionIn(c.gr.Group)
}
