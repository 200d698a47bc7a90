package apiserver

import (
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"edged/apiserver/registry"
)

// patchTypes are the media types of patches, in the order of upstream's 415.
var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
}

func (c *call) patch() error {
	patchType := types.PatchType(mediaType(c.req))
	if !known(patchType) {
		return negotiation.NewUnsupportedMediaTypeError(patchTypes)
	}
	out, err := c.negotiate(objectEndpoint)
	if err != nil {
		return err
	}
	data, err := c.readBody(c.req)
	if err != nil {
		return err
	}
	opts := metav1.PatchOptions{}
	if err := decodeOptions(c.req, &opts); err != nil {
		return err
	}
	if errs := validation.ValidatePatchOptions(&opts, patchType); len(errs) > 0 {
		return apierrors.NewInvalid(optionsKind("PatchOptions"), "", errs)
	}
	obj, created, err := c.reg.Patch(c.req.Context(), c.gr, c.info.Namespace, c.info.Name, c.info.Subresource, patchType, data, registry.PatchOptions{
		FieldManager: managerOrUserAgent(opts.FieldManager, c.req), Force: opts.Force != nil && *opts.Force,
		DryRun: opts.DryRun, FieldValidation: opts.FieldValidation,
	})
	if err != nil {
		return err
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	return c.respond(out, code, obj)
}

func known(t types.PatchType) bool {
	for _, p := range patchTypes {
		if string(t) == p {
			return true
		}
	}
	return false
}
