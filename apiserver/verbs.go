package apiserver

import (
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"edged/apiserver/registry"
)

// call is a request for a stored resource.
type call struct {
	*Server
	w    http.ResponseWriter
	req  *http.Request
	info *request.RequestInfo
	res  *resource
	gr   schema.GroupResource
}

// serve runs the verb of a request for a resource itself or for a subresource
// that the registry knows.
func (c *call) serve() error {
	if sub := c.info.Subresource; sub != "" {
		return c.serveSubresource(sub)
	}
	if !c.res.kind.Serves(c.info.Verb) {
		return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
	}
	switch c.info.Verb {
	case "get":
		return c.get()
	case "list":
		return c.list()
	case "watch":
		return c.watch()
	case "create":
		return c.create()
	case "update":
		return c.update()
	case "patch":
		return c.patch()
	case "delete":
		return c.delete()
	case "deletecollection":
		return c.deleteCollection()
	}
	return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
}

func (c *call) serveSubresource(name string) error {
	sub, ok := c.res.kind.Subresources[name]
	if _, here := c.res.subs[name]; !ok || !here {
		return c.noSuchSubresource()
	}
	supported := false
	for _, v := range sub.Verbs {
		supported = supported || v == c.info.Verb
	}
	if !supported {
		return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
	}
	switch c.info.Verb {
	case "get":
		return c.get()
	case "create":
		return c.createSubresource(sub)
	case "update":
		return c.update()
	case "patch":
		return c.patch()
	}
	return apierrors.NewMethodNotSupported(c.gr, c.info.Verb)
}

func (c *call) noSuchSubresource() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource",
		Details: &metav1.StatusDetails{Group: c.gr.Group, Kind: c.gr.Resource, Name: c.info.Name},
	}}
}

// gvk is the kind that a body of this request must have, and that the answer
// has: the resource's in the requested version, or the subresource's own.
func (c *call) gvk() schema.GroupVersionKind {
	if sub, ok := c.res.kind.Subresources[c.info.Subresource]; ok && !sub.GVK.Empty() {
		return sub.GVK
	}
	return c.res.gvk
}

func (c *call) get() error {
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	opts := metav1.GetOptions{}
	if err := decodeOptions(c.req, &opts); err != nil {
		return err
	}
	obj, err := c.reg.GetSubresource(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, c.info.Subresource, opts)
	if err != nil {
		return err
	}
	return c.respond(out, http.StatusOK, obj)
}

func (c *call) list() error {
	out, err := c.negotiate(listEndpoint)
	if err != nil {
		return err
	}
	opts, err := listOptions(c.req, c.info)
	if err != nil {
		return err
	}
	result, err := c.reg.List(c.req.Context(), c.gr, c.info.Namespace, opts)
	if err != nil {
		return err
	}
	l, err := newList(c.res, result)
	if err != nil {
		return err
	}
	c.respondList(c.w, c.req, out, l)
	return nil
}

func (c *call) create() error {
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	if c.info.Name != "" {
		return apierrors.NewMethodNotSupported(c.gr, "post")
	}
	opts, err := createOptions(c.req)
	if err != nil {
		return err
	}
	obj, err := c.decode(opts.FieldValidation)
	if err != nil {
		return err
	}
	if m, err := meta.Accessor(obj); err == nil {
		if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(c.info.Namespace, m); err != nil {
			return err
		}
	}
	obj, err = c.reg.Create(c.req.Context(), c.gr, c.info.Namespace, obj, opts)
	if err != nil {
		return err
	}
	return c.respond(out, http.StatusCreated, obj)
}

func (c *call) createSubresource(sub *registry.Subresource) error {
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	opts, err := createOptions(c.req)
	if err != nil {
		return err
	}
	obj, err := c.decode(opts.FieldValidation)
	if err != nil {
		return err
	}
	obj, err = c.reg.CreateSubresource(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, c.info.Subresource, obj, opts)
	if err != nil {
		return err
	}
	return c.respond(out, http.StatusCreated, obj)
}

func (c *call) update() error {
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	opts, err := updateOptions(c.req)
	if err != nil {
		return err
	}
	obj, err := c.decode(opts.FieldValidation)
	if err != nil {
		return err
	}
	if err := c.checkName(obj); err != nil {
		return err
	}
	result, created, err := c.reg.Update(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, c.info.Subresource,
		func(runtime.Object) (runtime.Object, error) { return obj.DeepCopyObject(), nil }, opts)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	return c.respond(out, code, result)
}

// checkName requires that the object has the name and namespace of the path.
func (c *call) checkName(obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	switch name, ns := m.GetName(), m.GetNamespace(); {
	case name == "" && c.gvk() != c.res.gvk: // a scale, say, may leave it out
	case name == "":
		return apierrors.NewBadRequest(fmt.Sprintf(
			"the name of the object (%s based on URL) was undeterminable: name must be provided", c.info.Name))
	case name != c.info.Name:
		return apierrors.NewBadRequest(fmt.Sprintf(
			"the name of the object (%s) does not match the name on the URL (%s)", name, c.info.Name))
	case c.info.Namespace != "" && ns != "" && ns != c.info.Namespace:
		return apierrors.NewBadRequest(fmt.Sprintf(
			"the namespace of the object (%s) does not match the namespace on the request (%s)", ns, c.info.Namespace))
	}
	return nil
}

func (c *call) delete() error {
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	opts, err := c.deleteOptions(c.req)
	if err != nil {
		return err
	}
	obj, gone, err := c.reg.Delete(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, opts)
	if err != nil {
		return err
	}
	code := http.StatusOK
	//lint:ignore SA1019 OrphanDependents is what old clients send.
	if !gone && opts.OrphanDependents != nil && !*opts.OrphanDependents {
		code = http.StatusAccepted
	}
	return c.respond(out, code, obj)
}

func (c *call) deleteCollection() error {
	out, err := c.negotiate(listEndpoint)
	if err != nil {
		return err
	}
	list, err := listOptions(c.req, c.info)
	if err != nil {
		return err
	}
	opts, err := c.deleteOptions(c.req)
	if err != nil {
		return err
	}
	result, err := c.reg.DeleteCollection(c.req.Context(), c.gr, c.info.Namespace, opts, list)
	if err != nil {
		return err
	}
	l, err := newList(c.res, result)
	if err != nil {
		return err
	}
	c.respondList(c.w, c.req, out, l)
	return nil
}

// respond writes one object in the negotiated form. Statuses go as they are.
func (c *call) respond(out output, code int, obj runtime.Object) error {
	if status, ok := obj.(*metav1.Status); ok {
		return c.respondPlain(out, code, typedStatus(*status))
	}
	obj, err := versioned(c.res.kind, obj, c.gvk())
	if err != nil {
		return err
	}
	switch {
	case out.table():
		t, err := c.printer.table(out, obj)
		if err != nil {
			return err
		}
		return c.respondPlain(out, code, t)
	case out.metadata():
		m, err := partialMetadata(obj, out.convert.GroupVersion().String())
		if err != nil {
			return err
		}
		return c.respondPlain(out, code, m)
	}
	return c.respondPlain(out, code, obj)
}

func (c *call) respondPlain(out output, code int, obj runtime.Object) error {
	body, err := encodeObject(out, obj)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", out.mediaType)
	c.write(c.w, c.req, code, body)
	return nil
}
