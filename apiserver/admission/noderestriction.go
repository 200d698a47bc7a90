package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	kubeletapis "k8s.io/kubelet/pkg/apis"

	"edged/apiserver/registry"
)

// nodeRestriction limits what a device may write, where the Node authorizer,
// which sees no bodies, has let it write at all: its own Node, the status of
// its own Pods, mirror Pods, its own Lease, tokens for its own Pods.
type nodeRestriction struct {
	validateOnly
	nodes    registry.Client[*corev1.Node]
	pods     registry.Client[*corev1.Pod]
	accounts registry.Client[*corev1.ServiceAccount]
}

func newNodeRestriction(r *registry.Registry) *nodeRestriction {
	return &nodeRestriction{nodes: registry.For[*corev1.Node](r), pods: registry.For[*corev1.Pod](r), accounts: registry.For[*corev1.ServiceAccount](r)}
}

const nodeUserPrefix = "system:node:"

func (p *nodeRestriction) Validate(_ context.Context, a *registry.Attributes) error {
	if a.User == nil || !slices.Contains(a.User.GetGroups(), user.NodesGroup) {
		return nil
	}
	node, ok := strings.CutPrefix(a.User.GetName(), nodeUserPrefix)
	if !ok || node == "" {
		return forbidden(a, fmt.Errorf("could not determine node from user %q", a.User.GetName()))
	}
	switch a.Resource.GroupResource() {
	case podResource:
		return p.validatePod(node, a)
	case nodeResource:
		return validateNode(node, a)
	case schema.GroupResource{Resource: "serviceaccounts"}:
		return p.validateToken(node, a)
	case coordinationv1.Resource("leases"):
		return validateLease(node, a)
	case certificatesv1.Resource("podcertificaterequests"):
		return p.validateCertificate(node, a)
	case resourcev1.Resource("resourceslices"):
		return validateSlice(node, a)
	case schema.GroupResource{Group: "storage.k8s.io", Resource: "csinodes"}:
		if a.Name != node {
			return forbidden(a, fmt.Errorf("can only access CSINode with the same name as the requesting node"))
		}
	}
	return nil
}

func (p *nodeRestriction) validatePod(node string, a *registry.Attributes) error {
	switch a.Subresource {
	case "":
		if a.Operation == create {
			return p.validateMirror(node, a)
		}
		if a.Operation == remove {
			return ownPod(node, a, a.OldObject, "delete pods")
		}
		return forbidden(a, fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node))
	case "status":
		return p.validateStatus(node, a)
	case "eviction":
		pod, ok := p.pods.Get(a.Namespace, a.Name)
		if !ok {
			return apierrors.NewNotFound(podResource, a.Name)
		}
		return ownPod(node, a, pod, "evict pods")
	}
	return forbidden(a, fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource))
}

func ownPod(node string, a *registry.Attributes, obj any, what string) error {
	if pod, ok := obj.(*corev1.Pod); !ok || pod.Spec.NodeName != node {
		return forbidden(a, fmt.Errorf("node %q can only %s with spec.nodeName set to itself", node, what))
	}
	return nil
}

func (p *nodeRestriction) validateStatus(node string, a *registry.Attributes) error {
	if err := ownPod(node, a, a.OldObject, "update pod status for pods"); err != nil {
		return err
	}
	pod, ok1 := a.Object.(*corev1.Pod)
	old, ok2 := a.OldObject.(*corev1.Pod)
	if ok1 && ok2 && !maps.Equal(pod.Labels, old.Labels) {
		return forbidden(a, fmt.Errorf("node %q cannot update labels through pod status", node))
	}
	return nil
}

func (p *nodeRestriction) validateMirror(node string, a *registry.Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok {
		return forbidden(a, fmt.Errorf("unexpected type %T", a.Object))
	}
	if !isMirror(pod) {
		return forbidden(a, fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node))
	}
	if pod.Spec.NodeName != node {
		return forbidden(a, fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node))
	}
	if err := p.validateOwner(node, a, pod); err != nil {
		return err
	}
	if what := references(pod); what != "" {
		return forbidden(a, fmt.Errorf("node %q can not create pods that reference %s", node, what))
	}
	return nil
}

func (p *nodeRestriction) validateOwner(node string, a *registry.Attributes, pod *corev1.Pod) error {
	if len(pod.OwnerReferences) != 1 {
		return forbidden(a, fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node))
	}
	owner := pod.OwnerReferences[0]
	if owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node {
		return forbidden(a, fmt.Errorf("node %q can only create pods with an owner reference set to itself", node))
	}
	if owner.Controller == nil || !*owner.Controller {
		return forbidden(a, fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node))
	}
	if owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion {
		return forbidden(a, fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node))
	}
	self, ok := p.nodes.Get("", node)
	if !ok {
		return apierrors.NewNotFound(nodeResource, node)
	}
	if owner.UID != self.UID {
		return forbidden(a, fmt.Errorf("node %s UID mismatch: expected %s got %s", node, owner.UID, self.UID))
	}
	return nil
}

// references names an API object that a Pod would give its device access to.
func references(pod *corev1.Pod) string {
	switch {
	case pod.Spec.ServiceAccountName != "":
		return "serviceaccounts"
	case usesSecrets(pod):
		return "secrets"
	case usesConfigMaps(pod):
		return "configmaps"
	case len(pod.Spec.ResourceClaims) > 0:
		return "resourceclaims"
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return "persistentvolumeclaims"
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil || s.ClusterTrustBundle != nil {
				return "volumes of API objects"
			}
		}
	}
	return ""
}

func validateNode(node string, a *registry.Attributes) error {
	if a.Name != node {
		return forbidden(a, fmt.Errorf("node %q is not allowed to modify node %q", node, a.Name))
	}
	next, ok := a.Object.(*corev1.Node)
	if !ok {
		return nil
	}
	old := &corev1.Node{}
	if a.Operation == update {
		if old, ok = a.OldObject.(*corev1.Node); !ok {
			return forbidden(a, fmt.Errorf("unexpected type %T", a.OldObject))
		}
		if !equality.Semantic.DeepEqual(next.Spec.Taints, old.Spec.Taints) {
			return forbidden(a, fmt.Errorf("node %q is not allowed to modify taints", node))
		}
		if !equality.Semantic.DeepEqual(next.OwnerReferences, old.OwnerReferences) {
			return forbidden(a, fmt.Errorf("node %q is not allowed to modify ownerReferences", node))
		}
	}
	refused := forbiddenLabels(next.Labels, old.Labels)
	if len(refused) == 0 {
		return nil
	}
	if a.Operation == create {
		return forbidden(a, fmt.Errorf("node %q is not allowed to set the following labels: %s", node, strings.Join(refused, ", ")))
	}
	return forbidden(a, fmt.Errorf("is not allowed to modify labels: %s", strings.Join(refused, ", ")))
}

// forbiddenLabels are the changed labels by which a device could draw Pods to
// itself.
func forbiddenLabels(next, old map[string]string) []string {
	var refused []string
	check := func(key string) {
		ns, _, ok := strings.Cut(key, "/")
		if !ok {
			return
		}
		restricted := ns == corev1.LabelNamespaceNodeRestriction || strings.HasSuffix(ns, "."+corev1.LabelNamespaceNodeRestriction)
		reserved := isIn(ns, "kubernetes.io") || isIn(ns, "k8s.io")
		if restricted || reserved && !kubeletapis.IsKubeletLabel(key) {
			refused = append(refused, key)
		}
	}
	for key, v := range next {
		if was, ok := old[key]; !ok || was != v {
			check(key)
		}
	}
	for key := range old {
		if _, ok := next[key]; !ok {
			check(key)
		}
	}
	slices.Sort(refused)
	return refused
}

func isIn(ns, domain string) bool { return ns == domain || strings.HasSuffix(ns, "."+domain) }

// validateToken lets a device have tokens for the Pods that run on it, bound to
// them.
func (p *nodeRestriction) validateToken(node string, a *registry.Attributes) error {
	req, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok || a.Operation != create || a.Subresource != "token" {
		return nil
	}
	to := req.Spec.BoundObjectRef
	if to == nil || to.APIVersion != "v1" || to.Kind != "Pod" || to.Name == "" {
		return forbidden(a, errors.New("node requested token not bound to a pod"))
	}
	if to.UID == "" {
		return forbidden(a, errors.New("node requested token with a pod binding without a uid"))
	}
	pod, ok := p.pods.Get(a.Namespace, to.Name)
	if !ok {
		return apierrors.NewNotFound(podResource, to.Name)
	}
	if to.UID != pod.UID {
		return forbidden(a, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", to.UID))
	}
	if pod.Spec.NodeName != node {
		return forbidden(a, errors.New("node requested token bound to a pod scheduled on a different node"))
	}
	return nil
}

func validateLease(node string, a *registry.Attributes) error {
	if a.Namespace != corev1.NamespaceNodeLease {
		return forbidden(a, fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease))
	}
	name := a.Name
	if m, err := meta.Accessor(a.Object); err == nil && a.Operation == create {
		name = m.GetName()
	}
	if name != node {
		return forbidden(a, errors.New("can only access node lease with the same name as the requesting node"))
	}
	return nil
}

// validateCertificate: a device asks for certificates only of Pods that it runs
// and that have a volume for one of that signer.
func (p *nodeRestriction) validateCertificate(node string, a *registry.Attributes) error {
	req, ok := a.Object.(*certificatesv1.PodCertificateRequest)
	if a.Operation != create || a.Subresource != "" || !ok {
		return forbidden(a, fmt.Errorf("unexpected operation %v", a.Operation))
	}
	spec := &req.Spec
	if string(spec.NodeName) != node {
		return forbidden(a, fmt.Errorf("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", spec.NodeName, node))
	}
	// What differs by its UID only may be newer than this device's cache: no
	// Forbidden, so that the client tries again.
	if n, ok := p.nodes.Get("", node); !ok || n.UID != spec.NodeUID {
		return fmt.Errorf("PodCertificateRequest for pod %q names node UID %q, which is not that of the running node", spec.PodName, spec.NodeUID)
	}
	pod, ok := p.pods.Get(a.Namespace, spec.PodName)
	if !ok || pod.UID != spec.PodUID {
		return fmt.Errorf("PodCertificateRequest for pod %q contains pod UID %q, which is not that of the running pod", spec.PodName, spec.PodUID)
	}
	account, ok := p.accounts.Get(a.Namespace, spec.ServiceAccountName)
	switch {
	case pod.Spec.NodeName != node:
		return forbidden(a, fmt.Errorf("pod %q is not running on node %q named in the PodCertificateRequest", spec.PodName, node))
	case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return forbidden(a, fmt.Errorf("pod %q is a mirror pod", spec.PodName))
	case pod.Spec.ServiceAccountName != spec.ServiceAccountName:
		return forbidden(a, fmt.Errorf("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", spec.PodName, spec.ServiceAccountName, pod.Spec.ServiceAccountName))
	case !ok || account.UID != spec.ServiceAccountUID:
		return fmt.Errorf("PodCertificateRequest for pod %q names service account UID %q, which is not that of the service account", spec.PodName, spec.ServiceAccountUID)
	case !hasCertificateVolume(pod, spec.SignerName):
		return forbidden(a, fmt.Errorf("pod %q has no volume for a certificate of signer %q", spec.PodName, spec.SignerName))
	}
	return nil
}

func hasCertificateVolume(pod *corev1.Pod, signer string) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.PodCertificate != nil && s.PodCertificate.SignerName == signer {
				return true
			}
		}
	}
	return false
}

// validateSlice: a device offers its own hardware only.
func validateSlice(node string, a *registry.Attributes) error {
	obj, what := a.Object, "create"
	switch a.Operation {
	case create:
	case remove:
		obj, what = a.OldObject, "delete"
	default:
		return nil
	}
	if slice, ok := obj.(*resourcev1.ResourceSlice); !ok || slice.Spec.NodeName == nil || *slice.Spec.NodeName != node {
		return forbidden(a, fmt.Errorf("can only %s ResourceSlice with the same NodeName as the requesting node", what))
	}
	return nil
}
