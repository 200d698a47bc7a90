package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"edged/apiserver/registry"
)

// retryWrite is how long a status that could not be written waits.
const retryWrite = time.Second

// statusWriter writes Pods' statuses: of each Pod the newest, when it can.
type statusWriter struct {
	pods    registry.Client[*corev1.Pod]
	log     *slog.Logger
	wake    chan struct{}
	failing bool // owned by run: told once

	mu      sync.Mutex
	pending map[types.UID]pending // guarded by mu
}

type pending struct {
	namespace, name string
	uid             types.UID
	status          *corev1.PodStatus // nil: only the removal
	gone            bool              // nothing is left on the device: delete the object
}

func newStatusWriter(pods registry.Client[*corev1.Pod], log *slog.Logger) *statusWriter {
	return &statusWriter{pods: pods, log: log, wake: make(chan struct{}, 1), pending: map[types.UID]pending{}}
}

// set queues a status; it replaces one that was not written yet.
func (s *statusWriter) set(p *corev1.Pod, status corev1.PodStatus) {
	s.put(pending{namespace: p.Namespace, name: p.Name, uid: p.UID, status: &status})
}

// remove queues the deletion of a Pod's object, after its last status.
func (s *statusWriter) remove(p *corev1.Pod) {
	s.put(pending{namespace: p.Namespace, name: p.Name, uid: p.UID, gone: true})
}

func (s *statusWriter) put(p pending) {
	s.mu.Lock()
	if old, ok := s.pending[p.uid]; ok {
		p.gone = p.gone || old.gone
		if p.status == nil {
			p.status = old.status
		}
	}
	s.pending[p.uid] = p
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// unsent is the status of a Pod that waits to be written.
func (s *statusWriter) unsent(uid types.UID) (corev1.PodStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[uid]
	if p.status == nil {
		return corev1.PodStatus{}, false
	}
	return *p.status, true
}

func (s *statusWriter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for {
			p, ok := s.take()
			if !ok {
				break
			}
			err := s.write(ctx, p)
			if err == nil {
				s.failing = false
				continue
			}
			if ctx.Err() != nil {
				return
			}
			if !s.failing {
				s.failing = true
				s.log.Warn("Pods' statuses wait until the cluster takes writes", "pod", p.namespace+"/"+p.name, "err", err)
			}
			s.restore(p)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryWrite):
			}
		}
	}
}

func (s *statusWriter) take() (pending, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, p := range s.pending {
		delete(s.pending, uid)
		return p, true
	}
	return pending{}, false
}

// restore puts back what was not written, unless something newer came.
func (s *statusWriter) restore(p pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if newer, ok := s.pending[p.uid]; ok {
		newer.gone = newer.gone || p.gone
		if newer.status == nil {
			newer.status = p.status
		}
		p = newer
	}
	s.pending[p.uid] = p
}

var errReplaced = errors.New("another Pod has the name by now")

func (s *statusWriter) write(ctx context.Context, p pending) error {
	if p.status != nil {
		_, err := s.pods.UpdateStatus(ctx, p.namespace, p.name, func(cur *corev1.Pod) error {
			if cur.UID != p.uid {
				return errReplaced
			}
			cur.Status = merge(cur.Status, *p.status)
			return nil
		})
		switch {
		case errors.Is(err, errReplaced), apierrors.IsNotFound(err):
			return nil
		case apierrors.IsInvalid(err):
			s.log.Error("a Pod's status is not valid", "pod", p.namespace+"/"+p.name, "err", err)
		case err != nil:
			return err
		}
	}
	if !p.gone {
		return nil
	}
	grace := int64(0)
	err := s.pods.Delete(ctx, p.namespace, p.name, metav1.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &p.uid}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// owned are the conditions that the agent writes; others belong to others.
var owned = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
}

// merge is the agent's status with what others wrote meanwhile.
func merge(cur, ours corev1.PodStatus) corev1.PodStatus {
	conditions := slices.Clone(cur.Conditions)
	for _, c := range ours.Conditions {
		evicted := c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet
		if !evicted && !slices.Contains(owned, c.Type) {
			continue
		}
		i := slices.IndexFunc(conditions, func(o corev1.PodCondition) bool { return o.Type == c.Type })
		if i < 0 {
			conditions = append(conditions, c)
			continue
		}
		conditions[i] = c
	}
	ours.Conditions = conditions
	ours.QOSClass, ours.NominatedNodeName = cur.QOSClass, cur.NominatedNodeName
	ours.Resize, ours.ResourceClaimStatuses, ours.ExtendedResourceClaimStatus = cur.Resize, cur.ResourceClaimStatuses, cur.ExtendedResourceClaimStatus
	if ours.Reason == "" && (cur.Phase == corev1.PodFailed || cur.Phase == corev1.PodSucceeded) {
		ours.Reason, ours.Message = cur.Reason, cur.Message
	}
	return ours
}
