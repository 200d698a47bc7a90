package kinds

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration"
	"k8s.io/kubernetes/pkg/registry/storagemigration/storagemigration"

	"edged/apiserver/registry"
)

// flowControl are the kinds of the group flowcontrol.apiserver.k8s.io. They are
// stored for charts that bring them, and answers name the one that fits
// (apiserver/flow.go): requests are bounded as docs/limits.md says.
func flowControl() []*registry.Kind {
	v1 := flowcontrolv1.SchemeGroupVersion
	return []*registry.Kind{
		withStatus(row[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](v1, "flowschemas", flowschema.Strategy), flowschema.StatusStrategy),
		withStatus(row[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](v1, "prioritylevelconfigurations",
			prioritylevelconfiguration.Strategy), prioritylevelconfiguration.StatusStrategy),
	}
}

// storageMigration is the kind of the group storagemigration.k8s.io. There is
// one storage version of each kind, so that nobody has anything to migrate.
func storageMigration() []*registry.Kind {
	return []*registry.Kind{
		withStatus(row[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](storagemigrationv1.SchemeGroupVersion,
			"storageversionmigrations", storagemigration.Strategy), storagemigration.StatusStrategy),
	}
}
