package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	// pageSize is upstream's for the lists of controllers.
	pageSize = 500
	// callTimeout bounds all but watches.
	callTimeout = 30 * time.Second
	maxAnswer   = 64 << 20

	partialList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	partial     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
)

// Servers is the way to the servers of aggregated APIs.
type Servers interface {
	// Foreign lists what they serve, a group's preferred version first, and the
	// group versions whose server does not answer.
	Foreign(ctx context.Context) (served []*metav1.APIResourceList, failed []schema.GroupVersion)
	// Forward sends a request to the server of its path's group version, in the
	// name of a user.
	Forward(req *http.Request, as user.Info) (*http.Response, error)
}

// Resource is a resource that another server has, in its group's preferred version.
type Resource struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
	Verbs      metav1.Verbs
}

// Can reports whether the resource has all these verbs.
func (r Resource) Can(verbs ...string) bool {
	return !slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(r.Verbs, v) })
}

// DiscoveryError names the group versions that could not be discovered.
type DiscoveryError struct{ Failed []schema.GroupVersion }

// Has reports whether one of them is of the group.
func (e *DiscoveryError) Has(group string) bool {
	return slices.ContainsFunc(e.Failed, func(gv schema.GroupVersion) bool { return gv.Group == group })
}

// Error is as client-go's.
func (e *DiscoveryError) Error() string {
	var groups []string
	for _, gv := range e.Failed {
		groups = append(groups, fmt.Sprintf("%s: stale GroupVersion discovery: %s", gv, gv))
	}
	slices.Sort(groups)
	return "unable to retrieve the complete list of server APIs: " + strings.Join(groups, ", ")
}

// Client asks in the name of one controller.
type Client struct {
	servers Servers
	as      user.Info
}

// New returns a Client of the controller with this ServiceAccount in kube-system,
// whose rights upstream's bootstrap roles give. servers may be nil: there are none.
func New(servers Servers, controller string) *Client {
	return &Client{servers, &user.DefaultInfo{
		Name:   "system:serviceaccount:kube-system:" + controller,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", user.AllAuthenticated},
	}}
}

// Resources lists what others serve. What was found is returned also with a
// [DiscoveryError].
func (c *Client) Resources(ctx context.Context) ([]Resource, error) {
	if c.servers == nil {
		return nil, nil
	}
	served, failed := c.servers.Foreign(ctx)
	var out []Resource
	for _, list := range served {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			known := func(o Resource) bool { return o.Group == gv.Group && o.Resource == r.Name }
			if !strings.Contains(r.Name, "/") && !slices.ContainsFunc(out, known) {
				out = append(out, Resource{gv.WithResource(r.Name), r.Kind, r.Namespaced, r.Verbs})
			}
		}
	}
	if len(failed) > 0 {
		return out, &DiscoveryError{failed}
	}
	return out, nil
}

// List is the metadata of a resource's objects, in a namespace or in all, and the
// version of the list.
func (c *Client) List(ctx context.Context, r Resource, ns string) ([]metav1.PartialObjectMetadata, string, error) {
	var all []metav1.PartialObjectMetadata
	query := url.Values{"limit": {fmt.Sprint(pageSize)}}
	for {
		var list metav1.PartialObjectMetadataList
		if err := c.call(ctx, http.MethodGet, r, ns, "", query, partialList, nil, &list); err != nil {
			return nil, "", err
		}
		all = append(all, list.Items...)
		if list.Continue == "" {
			return all, list.ResourceVersion, nil
		}
		query.Set("continue", list.Continue)
	}
}

// Get is the metadata of one object.
func (c *Client) Get(ctx context.Context, r Resource, ns, name string) (*metav1.PartialObjectMetadata, error) {
	obj := &metav1.PartialObjectMetadata{}
	return obj, c.call(ctx, http.MethodGet, r, ns, name, nil, partial, nil, obj)
}

// Delete deletes one object.
func (c *Client) Delete(ctx context.Context, r Resource, ns, name string, opts metav1.DeleteOptions) error {
	return c.remove(ctx, r, ns, name, opts)
}

// DeleteAll deletes all objects of a namespace.
func (c *Client) DeleteAll(ctx context.Context, r Resource, ns string, opts metav1.DeleteOptions) error {
	return c.remove(ctx, r, ns, "", opts)
}

func (c *Client) remove(ctx context.Context, r Resource, ns, name string, opts metav1.DeleteOptions) error {
	opts.Kind, opts.APIVersion = "DeleteOptions", "v1"
	body, err := json.Marshal(opts)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, r, ns, name, nil, "application/json", &content{"application/json", body}, nil)
}

// Patch merges metadata into an object, if it still is the one given.
func (c *Client) Patch(ctx context.Context, r Resource, obj metav1.Object, metadata map[string]any) error {
	merged := map[string]any{"uid": obj.GetUID(), "resourceVersion": obj.GetResourceVersion()}
	for k, v := range metadata {
		merged[k] = v
	}
	body, err := json.Marshal(map[string]any{"metadata": merged})
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPatch, r, obj.GetNamespace(), obj.GetName(), nil, partial, &content{string(types.MergePatchType), body}, nil)
}

// Watch tells of changes after a version until the server ends it.
func (c *Client) Watch(ctx context.Context, r Resource, version string, tell func(watch.EventType, *metav1.PartialObjectMetadata)) error {
	query := url.Values{"watch": {"1"}, "resourceVersion": {version}}
	resp, err := c.send(ctx, http.MethodGet, r, "", "", query, partial, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	events := json.NewDecoder(resp.Body)
	for {
		var e struct {
			Type   watch.EventType
			Object json.RawMessage
		}
		if err := events.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("watching %s: %w", r.GroupResource(), err)
		}
		if e.Type == watch.Error {
			return statusOf(e.Object, http.StatusInternalServerError)
		}
		obj := &metav1.PartialObjectMetadata{}
		if err := json.Unmarshal(e.Object, obj); err != nil {
			return fmt.Errorf("watching %s: %w", r.GroupResource(), err)
		}
		tell(e.Type, obj)
	}
}

// Read reads what is at a path of another server, in JSON.
func (c *Client) Read(ctx context.Context, path string, query url.Values, into any) error {
	if c.servers == nil {
		return fmt.Errorf("nobody serves %s", path)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	u := url.URL{Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := answered(c.servers.Forward(req, c.as))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into)
}

type content struct {
	mediaType string
	body      []byte
}

// call sends a request and reads its answer into an object, if one is wanted.
func (c *Client) call(ctx context.Context, verb string, r Resource, ns, name string, query url.Values, accept string, body *content, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.send(ctx, verb, r, ns, name, query, accept, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("reading %s: %w", r.GroupResource(), err)
	}
	return nil
}

// send returns an answer that is not an error.
func (c *Client) send(ctx context.Context, verb string, r Resource, ns, name string, query url.Values, accept string, body *content) (*http.Response, error) {
	parts := []string{"/apis", r.Group, r.Version}
	if r.Namespaced && ns != "" {
		parts = append(parts, "namespaces", ns)
	}
	u := url.URL{Path: path.Join(append(parts, r.GroupVersionResource.Resource, name)...), RawQuery: query.Encode()}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body.body)
	}
	req, err := http.NewRequestWithContext(ctx, verb, u.String(), reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept+",application/json")
	if body != nil {
		req.Header.Set("Content-Type", body.mediaType)
	}
	resp, err := c.servers.Forward(req, c.as)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.GroupResource(), err)
	}
	return answered(resp, nil)
}

// answered makes an error of an answer that is one.
func answered(resp *http.Response, err error) (*http.Response, error) {
	if err != nil || resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, err
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what there is of it says why
	return nil, statusOf(data, resp.StatusCode)
}

func statusOf(data []byte, code int) error {
	status := &metav1.Status{}
	if err := json.Unmarshal(data, status); err != nil || status.Status != metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: int32(code), Reason: reasonOf(code), Message: strings.TrimSpace(string(data)),
		}}
	}
	return &apierrors.StatusError{ErrStatus: *status}
}

func reasonOf(code int) metav1.StatusReason {
	switch code {
	case http.StatusNotFound:
		return metav1.StatusReasonNotFound
	case http.StatusConflict:
		return metav1.StatusReasonConflict
	case http.StatusGone:
		return metav1.StatusReasonExpired
	case http.StatusMethodNotAllowed:
		return metav1.StatusReasonMethodNotAllowed
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	}
	return metav1.StatusReasonUnknown
}
