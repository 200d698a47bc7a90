package kinds

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"

	"edged/apiserver/registry"
)

// storage are the kinds of the group storage.k8s.io. edged has no volume
// drivers: they are stored for those that bring their own.
func storage() []*registry.Kind {
	v1 := storagev1.SchemeGroupVersion
	return []*registry.Kind{
		returnsDeleted(row[storagev1.StorageClass, storagev1.StorageClassList](v1, "storageclasses", storageclass.Strategy, "sc")),
		returnsDeleted(withStatus(row[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](v1, "volumeattachments", volumeattachment.Strategy), volumeattachment.StatusStrategy)),
		returnsDeleted(row[storagev1.CSIDriver, storagev1.CSIDriverList](v1, "csidrivers", csidriver.Strategy)),
		returnsDeleted(withStatus(row[storagev1.CSINode, storagev1.CSINodeList](v1, "csinodes", csinode.Strategy), csinode.StatusStrategy)),
		row[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](v1, "csistoragecapacities", csistoragecapacity.Strategy),
		returnsDeleted(row[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](v1, "volumeattributesclasses", volumeattributesclass.Strategy, "vac")),
	}
}
