package kinds

import (
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"

	"edged/apiserver/registry"
)

func batch() []*registry.Kind {
	return []*registry.Kind{
		jobs(),
		withStatus(inAll(
			row[batchv1.CronJob, batchv1.CronJobList](batchv1.SchemeGroupVersion, "cronjobs", cronjob.Strategy, "cj")),
			cronjob.StatusStrategy),
	}
}
