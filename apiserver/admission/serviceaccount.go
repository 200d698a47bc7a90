package admission

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/names"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"edged/apiserver/registry"
)

const (
	defaultAccount = "default"
	// tokenVolumePrefix begins the name of the volume with the token.
	tokenVolumePrefix = "kube-api-access-"
	// tokenMountPath is where clients look for it.
	tokenMountPath = "/var/run/secrets/kubernetes.io/serviceaccount"
	rootCAName     = "kube-root-ca.crt"
	// tokenSeconds is upstream's: an odd number, by which the issuer knows
	// tokens of this volume and honors them for a year.
	tokenSeconds = 60*60 + 7
	// enforceMountableSecrets limits a Pod to the Secrets of its account.
	enforceMountableSecrets = "kubernetes.io/enforce-mountable-secrets"
)

// serviceAccount gives every Pod an account, the account's pull secrets and a
// volume with the account's token.
type serviceAccount struct {
	reg      *registry.Registry
	accounts registry.Client[*corev1.ServiceAccount]
}

func newServiceAccount(r *registry.Registry) *serviceAccount {
	return &serviceAccount{reg: r, accounts: registry.For[*corev1.ServiceAccount](r)}
}

func (p *serviceAccount) Admit(ctx context.Context, a *registry.Attributes) error {
	pod, ok := newPod(a)
	if !ok || isMirror(pod) {
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultAccount
		pod.Spec.DeprecatedServiceAccount = defaultAccount // kept in step, as defaulting does
	}
	account, err := p.account(ctx, a, pod)
	if err != nil {
		return err
	}
	if automount(account, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append([]corev1.LocalObjectReference(nil), account.ImagePullSecrets...)
	}
	return nil
}

func newPod(a *registry.Attributes) (*corev1.Pod, bool) {
	if a.Resource.GroupResource() != podResource || a.Subresource != "" || a.Operation != create {
		return nil, false
	}
	pod, ok := a.Object.(*corev1.Pod)
	return pod, ok
}

func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

func (p *serviceAccount) account(ctx context.Context, a *registry.Attributes, pod *corev1.Pod) (*corev1.ServiceAccount, error) {
	name := pod.Spec.ServiceAccountName
	if account, ok := p.accounts.Get(a.Namespace, name); ok {
		return account, nil
	}
	obj, err := p.reg.Get(ctx, schema.GroupResource{Resource: "serviceaccounts"}, a.Namespace, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("serviceaccount %q not found", name)
	}
	if err != nil {
		return nil, forbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.Namespace, name, err))
	}
	return obj.(*corev1.ServiceAccount), nil
}

// automount: the Pod's word counts more than the account's.
func automount(account *corev1.ServiceAccount, pod *corev1.Pod) bool {
	switch {
	case pod.Spec.AutomountServiceAccountToken != nil:
		return *pod.Spec.AutomountServiceAccountToken
	case account.AutomountServiceAccountToken != nil:
		return *account.AutomountServiceAccountToken
	}
	return true
}

// mountToken mounts the token into every container that mounts nothing else in
// its place.
func mountToken(pod *corev1.Pod) {
	name, exists := "", false
	for i := range pod.Spec.Volumes {
		if strings.HasPrefix(pod.Spec.Volumes[i].Name, tokenVolumePrefix) {
			name, exists = pod.Spec.Volumes[i].Name, true
			break
		}
	}
	if name == "" {
		name = names.SimpleNameGenerator.GenerateName(tokenVolumePrefix)
	}
	needed := false
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if mountsTokenPath(&containers[i]) {
				continue
			}
			needed = true
			containers[i].VolumeMounts = append(containers[i].VolumeMounts, corev1.VolumeMount{
				Name: name, ReadOnly: true, MountPath: tokenMountPath,
			})
		}
	}
	if needed && !exists {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: name, VolumeSource: corev1.VolumeSource{Projected: tokenSource()},
		})
	}
}

func mountsTokenPath(c *corev1.Container) bool {
	for i := range c.VolumeMounts {
		if c.VolumeMounts[i].MountPath == tokenMountPath {
			return true
		}
	}
	return false
}

// tokenSource is what client-go's in-cluster configuration reads: token,
// authority and namespace.
func tokenSource() *corev1.ProjectedVolumeSource {
	mode, seconds := corev1.ProjectedVolumeSourceDefaultMode, int64(tokenSeconds)
	return &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAName},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path:     "namespace",
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}
}

func (p *serviceAccount) Validate(ctx context.Context, a *registry.Attributes) error {
	pod, ok := newPod(a)
	if !ok {
		return nil
	}
	if isMirror(pod) {
		return validateMirror(a, pod)
	}
	if pod.Spec.ServiceAccountName == "" {
		return forbidden(a, fmt.Errorf("no service account specified for pod %s/%s", a.Namespace, pod.Name))
	}
	account, err := p.account(ctx, a, pod)
	if err != nil {
		return err
	}
	if enforce, _ := strconv.ParseBool(account.Annotations[enforceMountableSecrets]); enforce {
		return limitSecrets(a, account, pod)
	}
	return nil
}

// validateMirror: a mirror Pod shows what a device runs on its own account and
// must not give it access to anything.
func validateMirror(a *registry.Attributes, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return forbidden(a, errors.New("a mirror pod may not reference service accounts"))
	}
	if usesSecrets(pod) {
		return forbidden(a, errors.New("a mirror pod may not reference secrets"))
	}
	for i := range pod.Spec.Volumes {
		projected := pod.Spec.Volumes[i].Projected
		if projected == nil {
			continue
		}
		for _, s := range projected.Sources {
			if s.ServiceAccountToken != nil {
				return forbidden(a, errors.New("a mirror pod may not use ServiceAccountToken volume projections"))
			}
		}
	}
	return nil
}

// usesSecrets and usesConfigMaps do not go by the results of upstream's
// visitors, which do not tell whether one was cut short.
func usesSecrets(pod *corev1.Pod) (used bool) {
	podutil.VisitPodSecretNames(pod, func(string) bool { used = true; return false })
	return used
}

func usesConfigMaps(pod *corev1.Pod) (used bool) {
	podutil.VisitPodConfigmapNames(pod, func(string) bool { used = true; return false })
	return used
}

// limitSecrets refuses Secrets that the account does not list.
func limitSecrets(a *registry.Attributes, account *corev1.ServiceAccount, pod *corev1.Pod) error {
	allowed := map[string]bool{}
	for _, s := range account.Secrets {
		allowed[s.Name] = true
	}
	for _, s := range account.ImagePullSecrets {
		allowed[s.Name] = true
	}
	refused := ""
	podutil.VisitPodSecretNames(pod, func(name string) bool {
		if !allowed[name] {
			refused = name
		}
		return refused == ""
	})
	if refused != "" {
		return forbidden(a, fmt.Errorf("secret %q is not allowed because service account %s does not reference that secret", refused, account.Name))
	}
	return nil
}
