package apiserver

import (
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metatable "k8s.io/apimachinery/pkg/api/meta/table"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kubernetes/pkg/printers"

	"edged/apiserver/registry"
)

// automanagedLabel marks APIServices that nobody wrote, as upstream's autoregister
// controller does.
const automanagedLabel = "kube-aggregator.kubernetes.io/automanaged"

// groupPriority is upstream's GroupPriorityMinimum of the groups that this server
// has itself, by which discovery orders them and clients resolve short names;
// definedPriority is that of groups that CustomResourceDefinitions add.
var groupPriority = map[string]int32{
	"": 18000, apiregistrationv1.GroupName: 17900, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600,
	"autoscaling": 17500, "batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100,
	"rbac.authorization.k8s.io": 17000, "storage.k8s.io": 16800, "apiextensions.k8s.io": 16700,
	"admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600, "coordination.k8s.io": 16500, "node.k8s.io": 16300,
	"discovery.k8s.io": 16200, "resource.k8s.io": 16200, "flowcontrol.apiserver.k8s.io": 16100, "storagemigration.k8s.io": 15800,
}

const definedPriority = 1000

func priorityOf(group string) int32 {
	if p, ok := groupPriority[group]; ok {
		return p
	}
	return definedPriority
}

// versionPriority is upstream's of a group's only version; of several the preferred
// ones, as discovery orders them, have more.
const (
	versionPriority        = 15
	definedVersionPriority = 100
)

// local are the APIServices of what this server serves itself. They are in no
// store: they follow from the table of kinds.
func (g *aggregator) local() []runtime.Object {
	first, ok := registry.For[*corev1.Namespace](g.reg).Get("", metav1.NamespaceDefault)
	if !ok {
		return nil // the cluster's first objects are being made
	}
	defined := map[string]*apiextensionsv1.CustomResourceDefinition{}
	for _, d := range registry.For[*apiextensionsv1.CustomResourceDefinition](g.reg).List("") {
		if old := defined[d.Spec.Group]; old == nil || d.CreationTimestamp.Before(&old.CreationTimestamp) {
			defined[d.Spec.Group] = d
		}
	}
	var out []runtime.Object
	for _, group := range g.api().groups {
		if group.name == apiregistrationv1.GroupName {
			continue // upstream's aggregator does not register itself
		}
		_, known := groupPriority[group.name]
		for i, version := range group.versions {
			svc := &apiregistrationv1.APIService{
				ObjectMeta: metav1.ObjectMeta{Name: version + "." + group.name, CreationTimestamp: first.CreationTimestamp, ResourceVersion: first.ResourceVersion, Labels: map[string]string{automanagedLabel: "onstart"}},
				Spec:       apiregistrationv1.APIServiceSpec{Group: group.name, Version: version, GroupPriorityMinimum: priorityOf(group.name), VersionPriority: int32(versionPriority * (len(group.versions) - i))},
			}
			if d := defined[group.name]; !known && d != nil {
				svc.CreationTimestamp, svc.ResourceVersion = d.CreationTimestamp, d.ResourceVersion
				svc.Labels[automanagedLabel] = "true"
				svc.Spec.VersionPriority = definedVersionPriority
			}
			sum := sha256.Sum256([]byte("APIService " + svc.Name + " of " + string(first.UID))) // the same on all devices
			svc.UID = types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
			svc.Status.Conditions = []apiregistrationv1.APIServiceCondition{{
				Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, LastTransitionTime: svc.CreationTimestamp,
				Reason: "Local", Message: "Local APIServices are always available",
			}}
			out = append(out, svc)
		}
	}
	return out
}

// addServiceHandler prints APIServices, as pkg/registry/apiservice/etcd of
// k8s.io/kube-aggregator does.
func addServiceHandler(h printers.PrintHandler) {
	docs := metav1.ObjectMeta{}.SwaggerDoc()
	// An error would be of the handler's signature.
	_ = h.TableHandler([]metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: docs["name"]},
		{Name: "Service", Type: "string", Description: "The reference to the service that hosts this API endpoint."},
		{Name: "Available", Type: "string", Description: "Whether this service is available."},
		{Name: "Age", Type: "string", Description: docs["creationTimestamp"]},
	}, func(svc *apiregistration.APIService, _ printers.GenerateOptions) ([]metav1.TableRow, error) {
		service, available := "Local", string(apiregistration.ConditionUnknown)
		if ref := svc.Spec.Service; ref != nil {
			service = ref.Namespace + "/" + ref.Name
		}
		for _, c := range svc.Status.Conditions {
			if c.Type != apiregistration.Available {
				continue
			}
			if available = string(c.Status); c.Status != apiregistration.ConditionTrue && c.Reason != "" {
				available = fmt.Sprintf("%s (%s)", c.Status, c.Reason)
			}
		}
		return []metav1.TableRow{{Cells: []any{svc.Name, service, available, metatable.ConvertToHumanReadableDateType(svc.CreationTimestamp)}}}, nil
	})
}
