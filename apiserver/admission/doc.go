// Package admission decides, after defaulting and before validation, whether a
// write may happen and what it must look like.
//
// It is the chain that upstream turns on by default, as far as its kinds are
// served: NamespaceLifecycle, ServiceAccount, NodeRestriction, PodSecurity,
// LimitRanger, Priority, DefaultTolerationSeconds, RuntimeClass, DefaultStorageClass,
// StorageObjectInUseProtection, PersistentVolumeClaimResize, those of
// certificates (CertificateApproval, CertificateSigning, ClusterTrustBundleAttest,
// CertificateSubjectRestriction), the webhooks and policies of apiserver/webhook,
// ResourceQuota, and the guards against gaining rights by writing roles and claims
// for devices, which upstream keeps in its storage.
//
// It is not authorization (apiserver/authz), which sees no bodies, and not the
// validation of a kind's fields (apiserver/kinds).
//
// Types: New returns a Chain, a registry.Admission. Each file is one plugin: a
// struct with the methods of registry.Admission and the cache clients it reads.
//
// Promises: decisions are made from this device's cache, without a read from
// the store but for a namespace that the cache does not have yet; only
// ResourceQuota writes, to charge a quota. Wording is
// upstream's. Writes of the device itself (controllers, agent) pass through
// the same chain: a Pod that a ReplicaSet makes gets its token volume too.
//
// Dangers: order matters: what mutates comes before what checks, and
// Attributes.Object is private to the request while OldObject is shared.
//
// It owns no goroutine. It may be imported by cmd/edged.
//
// Sources: k8s.io/kubernetes/plugin/pkg/admission/*,
// k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle,
// k8s.io/pod-security-admission/admission.
package admission
