package authz

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

const nodeUserPrefix = "system:node:"

// nodeName tells which device a user is. A member of system:nodes with another
// name is no device to the Node authorizer.
func nodeName(u user.Info) (string, bool) {
	if !strings.HasPrefix(u.GetName(), nodeUserPrefix) || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", false
	}
	return strings.TrimPrefix(u.GetName(), nodeUserPrefix), true
}

// authorizeNode decides for devices. Its answer is allow, or no opinion with a
// reason; users that are not devices get no opinion without one.
func (a *Authorizer) authorizeNode(u user.Info, attrs authorizer.Attributes) (authorizer.Decision, string) {
	node, ok := nodeName(u)
	if !ok {
		return authorizer.DecisionNoOpinion, ""
	}
	if node == "" {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("unknown node for user %q", u.GetName())
	}
	if attrs.IsResourceRequest() {
		decide, ok := nodeResources[schema.GroupResource{Group: attrs.GetAPIGroup(), Resource: attrs.GetResource()}]
		if ok {
			if reason := decide(a.source, node, attrs); reason != "" {
				return authorizer.DecisionNoOpinion, reason
			}
			return authorizer.DecisionAllow, ""
		}
	}
	for i := range a.nodeRules {
		if ruleAllows(attrs, &a.nodeRules[i]) {
			return authorizer.DecisionAllow, ""
		}
	}
	return authorizer.DecisionNoOpinion, ""
}

// nodeDecision returns why a device may not do what attrs says; "" is allow.
type nodeDecision func(s Source, node string, attrs authorizer.Attributes) string

// nodeResources are the resources of which a device sees its own part only.
// Others follow the rules of the role system:node.
var nodeResources = map[schema.GroupResource]nodeDecision{
	{Resource: "secrets"}:                              readOfPods(podUsesSecret),
	{Resource: "configmaps"}:                           readOfPods(podUsesConfigMap),
	{Resource: "persistentvolumeclaims"}:               getOfPods(podUsesClaim),
	{Resource: "persistentvolumes"}:                    decideVolume,
	{Resource: "serviceaccounts"}:                      decideServiceAccount,
	{Resource: "nodes"}:                                decideNode,
	{Resource: "pods"}:                                 decidePod,
	{Group: "coordination.k8s.io", Resource: "leases"}: decideLease,
	{Group: "storage.k8s.io", Resource: "csinodes"}:    decideCSINode,
}

const noDeny = ""

func noRelation(node string) string {
	return fmt.Sprintf("no relationship found between node '%s' and this object", node)
}

// podUses tells whether a Pod refers to the named object of its namespace.
type podUses func(pod *corev1.Pod, name string) bool

func related(s Source, node, namespace, name string, uses podUses) bool {
	for _, pod := range s.PodsOn(node) {
		if pod.Namespace == namespace && uses(pod, name) {
			return true
		}
	}
	return false
}

// The results of upstream's visitors do not tell whether one was cut short.

func podUsesSecret(pod *corev1.Pod, name string) (found bool) {
	podutil.VisitPodSecretNames(pod, func(n string) bool {
		found = found || n == name
		return !found
	})
	return found
}

func podUsesConfigMap(pod *corev1.Pod, name string) (found bool) {
	podutil.VisitPodConfigmapNames(pod, func(n string) bool {
		found = found || n == name
		return !found
	})
	return found
}

func podUsesClaim(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name {
			return true
		}
		if v.Ephemeral != nil && pod.Name+"-"+v.Name == name {
			return true
		}
	}
	return false
}

func podUsesAccount(pod *corev1.Pod, name string) bool { return pod.Spec.ServiceAccountName == name }

func podIs(pod *corev1.Pod, name string) bool { return pod.Name == name }

// readOfPods allows to get, list and watch a single object that a Pod of the
// device uses.
func readOfPods(uses podUses) nodeDecision {
	return func(s Source, node string, attrs authorizer.Attributes) string {
		switch attrs.GetVerb() {
		case "get", "list", "watch":
		default:
			return "can only read resources of this type"
		}
		if attrs.GetSubresource() != "" {
			return "cannot read subresource"
		}
		if attrs.GetNamespace() == "" {
			return "can only read namespaced object of this type"
		}
		return decideRelated(s, node, attrs, uses)
	}
}

// getOfPods allows to get an object that a Pod of the device uses.
func getOfPods(uses podUses) nodeDecision {
	return func(s Source, node string, attrs authorizer.Attributes) string {
		if attrs.GetVerb() != "get" {
			return "can only get individual resources of this type"
		}
		if attrs.GetSubresource() != "" {
			return "cannot get subresource"
		}
		return decideRelated(s, node, attrs, uses)
	}
}

// decideVolume allows to get the volume of a claim that a Pod of the device uses.
func decideVolume(s Source, node string, attrs authorizer.Attributes) string {
	if attrs.GetVerb() != "get" {
		return "can only get individual resources of this type"
	}
	if attrs.GetSubresource() != "" {
		return "cannot get subresource"
	}
	namespace, claim, ok := s.ClaimOf(attrs.GetName())
	if !ok || !related(s, node, namespace, claim, podUsesClaim) {
		return noRelation(node)
	}
	return noDeny
}

func decideRelated(s Source, node string, attrs authorizer.Attributes, uses podUses) string {
	if attrs.GetName() == "" {
		return "No Object name found"
	}
	if !related(s, node, attrs.GetNamespace(), attrs.GetName(), uses) {
		return noRelation(node)
	}
	return noDeny
}

func decideServiceAccount(s Source, node string, attrs authorizer.Attributes) string {
	if attrs.GetVerb() == "get" && attrs.GetSubresource() == "" {
		return decideRelated(s, node, attrs, podUsesAccount)
	}
	if attrs.GetVerb() != "create" || attrs.GetName() == "" {
		return "can only create tokens for individual service accounts"
	}
	if attrs.GetSubresource() != "token" {
		return "can only create token subresource of serviceaccount"
	}
	return decideRelated(s, node, attrs, podUsesAccount)
}

// decideNode leaves to admission which Node is written.
func decideNode(_ Source, node string, attrs authorizer.Attributes) string {
	verb := attrs.GetVerb()
	switch attrs.GetSubresource() {
	case "":
		switch verb {
		case "create", "update", "patch":
			return noDeny
		case "get", "list", "watch":
			switch attrs.GetName() {
			case node:
				return noDeny
			case "":
				return fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", node)
			}
			return fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", node, attrs.GetName())
		}
	case "status":
		if verb == "update" || verb == "patch" {
			return noDeny
		}
	}
	return "node cannot " + verb + " this"
}

// decidePod leaves to admission which Pod is written.
func decidePod(s Source, node string, attrs authorizer.Attributes) string {
	verb := attrs.GetVerb()
	switch attrs.GetSubresource() {
	case "":
		switch verb {
		case "get":
			return decideRelated(s, node, attrs, podIs)
		case "list", "watch":
			if selectsNode(attrs, node) {
				return noDeny
			}
			if attrs.GetName() != "" {
				return decideRelated(s, node, attrs, podIs)
			}
			return "can only list/watch pods with spec.nodeName field selector"
		case "create", "delete":
			return noDeny
		}
	case "status":
		if verb == "update" || verb == "patch" {
			return noDeny
		}
	case "eviction":
		if verb == "create" {
			return noDeny
		}
	}
	return "node cannot " + verb + " this"
}

func selectsNode(attrs authorizer.Attributes, node string) bool {
	reqs, err := attrs.GetFieldSelector()
	if err != nil {
		return false
	}
	for _, r := range reqs {
		if r.Field == "spec.nodeName" && (r.Operator == selection.Equals || r.Operator == selection.DoubleEquals) && r.Value == node {
			return true
		}
	}
	return false
}

func decideLease(_ Source, node string, attrs authorizer.Attributes) string {
	switch attrs.GetVerb() {
	case "get", "create", "update", "patch", "delete":
	default:
		return "can only get, create, update, patch, or delete a node lease"
	}
	if attrs.GetNamespace() != corev1.NamespaceNodeLease {
		return fmt.Sprintf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if attrs.GetVerb() != "create" && attrs.GetName() != node {
		return "can only access node lease with the same name as the requesting node"
	}
	return noDeny
}

func decideCSINode(_ Source, node string, attrs authorizer.Attributes) string {
	if attrs.GetSubresource() != "" {
		return "cannot authorize CSINode subresources"
	}
	switch attrs.GetVerb() {
	case "get", "create", "update", "patch", "delete":
	default:
		return "can only get, create, update, patch, or delete a CSINode"
	}
	if attrs.GetVerb() != "create" && attrs.GetName() != node {
		return "can only access CSINode with the same name as the requesting node"
	}
	return noDeny
}
