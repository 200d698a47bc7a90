package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

// namespaceLifecycle keeps objects out of namespaces that do not exist or are
// ending, and the namespaces alive that the cluster needs.
type namespaceLifecycle struct {
	admitOnly
	reg        *registry.Registry
	namespaces registry.Client[*corev1.Namespace]
}

func newNamespaceLifecycle(r *registry.Registry) *namespaceLifecycle {
	return &namespaceLifecycle{reg: r, namespaces: registry.For[*corev1.Namespace](r)}
}

func immortal(namespace string) bool {
	switch namespace {
	case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
		return true
	}
	return false
}

func (p *namespaceLifecycle) Admit(ctx context.Context, a *registry.Attributes) error {
	isNamespace := a.Resource.GroupResource() == namespaceResource
	if isNamespace && a.Operation == remove && immortal(a.Name) {
		return apierrors.NewForbidden(namespaceResource, a.Name, errors.New("this namespace may not be deleted"))
	}
	if isNamespace || a.Namespace == "" || a.Operation != create {
		return nil
	}
	ns, ok := p.namespaces.Get("", a.Namespace)
	if !ok { // made a moment ago on another device, perhaps
		obj, err := p.reg.Get(ctx, namespaceResource, "", a.Namespace, metav1.GetOptions{})
		if err != nil {
			return err
		}
		ns = obj.(*corev1.Namespace)
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	refused := apierrors.NewForbidden(a.Resource.GroupResource(), nameOf(a),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
	refused.ErrStatus.Details.Causes = append(refused.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace),
		Field:   "metadata.namespace",
	})
	return refused
}
