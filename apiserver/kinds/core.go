package kinds

//lint:file-ignore SA1019 Endpoints is deprecated and still served, as by every release of Kubernetes.

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"

	"edged/apiserver/registry"
)

// core are the kinds of the group without a name.
func core(cfg Config) []*registry.Kind {
	v1 := corev1.SchemeGroupVersion

	endpoints := row[corev1.Endpoints, corev1.EndpointsList](v1, "endpoints", endpointsStrategy{newBase(true)}, "ep")
	endpoints.Prefix = "services/endpoints"

	secrets := row[corev1.Secret, corev1.SecretList](v1, "secrets", newSecretStrategy())
	secrets.Fields = func(obj runtime.Object) fields.Set { return fields.Set{"type": string(obj.(*corev1.Secret).Type)} }
	secrets.SelectableFields = []string{"type"}

	return []*registry.Kind{
		namespaces(),
		nodes(cfg),
		pods(),
		services(cfg),
		rangeAllocations(),
		events(),
		replicationControllers(),
		persistentVolumes(),
		persistentVolumeClaims(),
		row[corev1.ConfigMap, corev1.ConfigMapList](v1, "configmaps", newConfigMapStrategy(), "cm"),
		secrets,
		returnsDeleted(row[corev1.ServiceAccount, corev1.ServiceAccountList](v1, "serviceaccounts", serviceAccountStrategy{newBase(true)}, "sa")),
		endpoints,
		componentStatuses(),
		row[corev1.LimitRange, corev1.LimitRangeList](v1, "limitranges", limitrange.Strategy, "limits"),
		returnsDeleted(row[corev1.PodTemplate, corev1.PodTemplateList](v1, "podtemplates", podtemplate.Strategy)),
		returnsDeleted(withStatus(
			row[corev1.ResourceQuota, corev1.ResourceQuotaList](v1, "resourcequotas", resourcequota.Strategy, "quota"),
			resourcequota.StatusStrategy)),
	}
}
