package kinds

import (
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"

	"edged/apiserver/registry"
)

func apps() []*registry.Kind {
	v1 := appsv1.SchemeGroupVersion
	deployments := withStatus(inAll(
		row[appsv1.Deployment, appsv1.DeploymentList](v1, "deployments", deployment.Strategy, "deploy")),
		deployment.StatusStrategy)
	withScale(deployments)
	statefulSets := withStatus(inAll(
		row[appsv1.StatefulSet, appsv1.StatefulSetList](v1, "statefulsets", statefulset.Strategy, "sts")),
		statefulset.StatusStrategy)
	withScale(statefulSets)
	return []*registry.Kind{
		deployments,
		replicaSets(),
		statefulSets,
		withStatus(inAll(
			row[appsv1.DaemonSet, appsv1.DaemonSetList](v1, "daemonsets", daemonset.Strategy, "ds")),
			daemonset.StatusStrategy),
		row[appsv1.ControllerRevision, appsv1.ControllerRevisionList](v1, "controllerrevisions", controllerrevision.Strategy),
	}
}
