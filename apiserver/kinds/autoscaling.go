package kinds

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	hpa "k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"

	"edged/apiserver/registry"
)

func autoscaling() []*registry.Kind {
	k := withStatus(inAll(
		row[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](
			autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", hpa.Strategy, "hpa")),
		hpa.StatusStrategy)
	k.Served = []schema.GroupVersion{autoscalingv2.SchemeGroupVersion, autoscalingv1.SchemeGroupVersion}
	return []*registry.Kind{k}
}
