// Command operator is a program as people write them with controller-runtime: a
// manager with leader election and cached reads, a reconciler with finalizer,
// server-side apply and a status, and webhooks. The end-to-end tests hold it
// against edged.
//
// It counts its requests to the API and serves the counts on /requests beside its
// metrics: one line for each method and path.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	finalizer = "operator.example/tidy"
	owner     = client.FieldOwner("shelf-operator")
)

func main() {
	metrics := flag.String("metrics", "127.0.0.1:9440", "where to serve metrics")
	port := flag.Int("webhook-port", 0, "port of the webhooks; 0 is none")
	certs := flag.String("certs", "", "folder of tls.crt and tls.key")
	flag.Parse()
	if err := run(*metrics, *port, *certs); err != nil {
		log.Fatal("operator: ", err)
	}
}

func run(metrics string, port int, certs string) error {
	ctrl.SetLogger(zap.New())
	if err := addToScheme(scheme.Scheme); err != nil {
		return err
	}
	counts := &counter{n: map[string]int{}}
	cfg := ctrl.GetConfigOrDie()
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			counts.add(req)
			return rt.RoundTrip(req)
		})
	})
	// The test restarts the API under the leader, on a machine that may be busy.
	lease, renew, retry := 3*time.Minute, 2*time.Minute, time.Second
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		LeaderElection: true, LeaderElectionID: "shelf-operator", LeaderElectionNamespace: "default", LeaderElectionReleaseOnCancel: true,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Metrics:       metricsserver.Options{BindAddress: metrics, ExtraHandlers: map[string]http.Handler{"/requests": counts}},
		WebhookServer: webhook.NewServer(webhook.Options{Port: port, CertDir: certs}),
	})
	if err != nil {
		return err
	}
	if err := ctrl.NewControllerManagedBy(mgr).For(&Shelf{}).Owns(&corev1.ConfigMap{}).Complete(&reconciler{mgr.GetClient()}); err != nil {
		return err
	}
	if port != 0 {
		if err := ctrl.NewWebhookManagedBy(mgr, &Shelf{}).WithDefaulter(rules{}).WithValidator(rules{}).Complete(); err != nil {
			return err
		}
	}
	return mgr.Start(ctrl.SetupSignalHandler())
}

func addToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(groupVersion, &Shelf{}, &ShelfList{})
	metav1.AddToGroupVersion(s, groupVersion)
	return nil
}

type reconciler struct{ client.Client }

// Reconcile makes the ConfigMap of a Shelf, and leaves a note when it goes.
func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	shelf := &Shelf{}
	if err := r.Get(ctx, req.NamespacedName, shelf); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !shelf.DeletionTimestamp.IsZero() {
		if !controllerutil.ContainsFinalizer(shelf, finalizer) {
			return ctrl.Result{}, nil
		}
		note := corev1ac.ConfigMap(shelf.Name+"-gone", shelf.Namespace).WithData(map[string]string{"text": shelf.Spec.Text})
		if err := r.Apply(ctx, note, owner); err != nil {
			return ctrl.Result{}, err
		}
		before := shelf.copy()
		controllerutil.RemoveFinalizer(shelf, finalizer)
		return ctrl.Result{}, r.Patch(ctx, shelf, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	}
	if controllerutil.AddFinalizer(shelf, finalizer) {
		if err := r.Update(ctx, shelf); err != nil {
			return ctrl.Result{}, err
		}
	}
	want := corev1ac.ConfigMap(shelf.Name, shelf.Namespace).
		WithOwnerReferences(metav1ac.OwnerReference().WithAPIVersion(groupVersion.String()).WithKind("Shelf").WithName(shelf.Name).WithUID(shelf.UID).WithController(true)).
		WithData(map[string]string{"text": strings.Repeat(shelf.Spec.Text, shelf.Spec.Copies)})
	if err := r.Apply(ctx, want, owner, client.ForceOwnership); err != nil {
		return ctrl.Result{}, err
	}
	before := shelf.copy()
	shelf.Status.ObservedGeneration = shelf.Generation
	meta.SetStatusCondition(&shelf.Status.Conditions, metav1.Condition{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Filled", ObservedGeneration: shelf.Generation})
	return ctrl.Result{}, r.Status().Patch(ctx, shelf, client.MergeFrom(before))
}

// rules are the webhooks.
type rules struct{}

func (rules) Default(_ context.Context, s *Shelf) error {
	if s.Spec.Copies == 0 {
		s.Spec.Copies = 1
	}
	return nil
}

func (rules) ValidateCreate(_ context.Context, s *Shelf) (admission.Warnings, error) {
	if s.Spec.Copies > 10 {
		return nil, errors.New("a shelf holds at most 10 copies")
	}
	if s.Spec.Copies > 5 {
		return admission.Warnings{"this shelf bends"}, nil
	}
	return nil, nil
}

func (r rules) ValidateUpdate(ctx context.Context, _, s *Shelf) (admission.Warnings, error) {
	return r.ValidateCreate(ctx, s)
}

func (rules) ValidateDelete(context.Context, *Shelf) (admission.Warnings, error) { return nil, nil }

// counter counts requests.
type counter struct {
	mu sync.Mutex // guards n
	n  map[string]int
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (c *counter) add(req *http.Request) {
	method := req.Method
	if q := req.URL.Query(); method == http.MethodGet && q.Get("watch") != "" {
		method = "WATCH"
		if q.Get("sendInitialEvents") == "true" {
			method = "WATCHLIST"
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[method+" "+req.URL.Path]++
}

func (c *counter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(c.n)) {
		fmt.Fprintln(w, k, c.n[k])
	}
}
