package kinds

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"edged/apiserver/registry"
)

// eventTTLSeconds is upstream's default of --event-ttl.
const eventTTLSeconds = 3600

func events() *registry.Kind {
	k := row[corev1.Event, corev1.EventList](corev1.SchemeGroupVersion, "events", eventStrategy{newBase(true)}, "ev")
	k.Served = []schema.GroupVersion{corev1.SchemeGroupVersion, eventsv1.SchemeGroupVersion}
	k.Fields = eventFields
	k.SelectableFields = []string{
		"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
		"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
		"reason", "reportingComponent", "source", "type",
	}
	k.TTL = func(runtime.Object) int64 { return eventTTLSeconds }
	return k
}

func eventFields(obj runtime.Object) fields.Set {
	e := obj.(*corev1.Event)
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	o := e.InvolvedObject
	return fields.Set{
		"involvedObject.kind":            o.Kind,
		"involvedObject.namespace":       o.Namespace,
		"involvedObject.name":            o.Name,
		"involvedObject.uid":             string(o.UID),
		"involvedObject.apiVersion":      o.APIVersion,
		"involvedObject.resourceVersion": o.ResourceVersion,
		"involvedObject.fieldPath":       o.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         source,
		"type":                           e.Type,
	}
}

// eventStrategy follows pkg/registry/core/event. What is required of an event
// depends on the group it is sent to.
type eventStrategy struct{ base }

func (eventStrategy) AllowCreateOnUpdate(context.Context) bool { return true }

// DefaultGarbageCollectionPolicy is Unsupported: nothing depends on an event.
func (eventStrategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	return rest.Unsupported
}

func requestedVersion(ctx context.Context) schema.GroupVersion {
	info, ok := request.RequestInfoFrom(ctx)
	if !ok {
		return schema.GroupVersion{}
	}
	return schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
}

func (eventStrategy) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return validation.ValidateEventCreate(obj.(*api.Event), requestedVersion(ctx))
}

func (eventStrategy) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.ValidateEventUpdate(obj.(*api.Event), old.(*api.Event), requestedVersion(ctx))
}
