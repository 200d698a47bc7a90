package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	v1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	strictjson "sigs.k8s.io/json"

	"edged/apiserver/codec"
	"edged/apiserver/registry"
)

// Config is what New needs.
type Config struct {
	Registry   *registry.Registry
	Client     *Client
	Authorizer authorizer.UnconditionalAuthorizer // for expressions that ask
	Logger     *slog.Logger
}

// Admission asks webhooks and policies about writes.
type Admission struct {
	reg        *registry.Registry
	client     *Client
	authz      authorizer.UnconditionalAuthorizer
	logger     *slog.Logger
	mutating   registry.Client[*v1.MutatingWebhookConfiguration]
	validating registry.Client[*v1.ValidatingWebhookConfiguration]
	policies   policies
	programs   programs
}

// New returns an Admission that asks whom r is configured to ask.
func New(cfg Config) *Admission {
	return &Admission{
		reg: cfg.Registry, client: cfg.Client, authz: cfg.Authorizer, logger: cfg.Logger,
		mutating:   registry.For[*v1.MutatingWebhookConfiguration](cfg.Registry),
		validating: registry.For[*v1.ValidatingWebhookConfiguration](cfg.Registry),
		policies:   newPolicies(cfg.Registry),
	}
}

// Close ends what the Admission keeps.
func (d *Admission) Close() error {
	d.programs.close()
	return nil
}

// mutator is something that may change the object: a policy, or a webhook.
type mutator struct {
	reinvoke bool
	run      func(ctx context.Context, w *write) error
	// done says that it ran, on the object as it left it.
	done bool
	left runtime.Object
}

// Admit lets policies, then webhooks, change a.Object. again runs the plugins
// before this one once more, on an object that was changed.
func (d *Admission) Admit(ctx context.Context, a *registry.Attributes, again func() error) error {
	hooks := d.mutatingHooks()
	policies := d.policies.mutatingFor()
	if len(hooks) == 0 && len(policies) == 0 {
		return nil
	}
	w, err := newWrite(d.reg, a)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if w.isExempt() {
		return nil
	}
	var all []*mutator
	for _, p := range policies {
		all = append(all, d.policyMutator(p))
	}
	for _, h := range hooks {
		all = append(all, d.hookMutator(h))
	}
	before := a.Object
	for _, m := range all {
		if err := m.call(ctx, w); err != nil {
			return err
		}
	}
	if a.Object == before { // nobody changed anything
		return nil
	}
	if err := again(); err != nil {
		return err
	}
	if w, err = newWrite(d.reg, a); err != nil {
		return apierrors.NewInternalError(err)
	}
	for _, m := range all {
		if m.done && m.reinvoke && !equality.Semantic.DeepEqual(m.left, a.Object) {
			if err := m.call(ctx, w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *mutator) call(ctx context.Context, w *write) error {
	err := m.run(ctx, w)
	if errors.Is(err, errNoMatch) {
		return nil
	}
	m.done, m.left = true, w.a.Object
	return err
}

// errNoMatch says that the write is none of a mutator's business.
var errNoMatch = errors.New("does not match")

func (d *Admission) hookMutator(h *hook) *mutator {
	return &mutator{reinvoke: h.reinvoke, run: func(ctx context.Context, w *write) error {
		m, ok, err := d.concerns(ctx, h, w)
		if err != nil {
			return err
		}
		if !ok {
			return errNoMatch
		}
		patch, err := d.ask(ctx, h, w, m)
		if err == nil && len(patch) > 0 {
			err = w.patch(patch, m, h.name)
		}
		return d.outcome(ctx, h, err)
	}}
}

// outcome applies the failurePolicy.
func (d *Admission) outcome(ctx context.Context, h *hook, err error) error {
	if f := (*failure)(nil); errors.As(err, &f) && h.ignoresFailure() {
		if ctx.Err() != nil {
			return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
		}
		d.logger.Warn("an admission webhook failed and is passed over", "webhook", h.name, "configuration", h.configuration, "err", f.err)
		return nil
	}
	return closed(err)
}

// concerns reports whether the webhook is to be asked, and about what.
func (d *Admission) concerns(ctx context.Context, h *hook, w *write) (meaning, bool, error) {
	m, ok := w.match(h.rules, h.matchPolicy)
	if !ok {
		return m, false, nil
	}
	ok, err := w.selected(ctx, h.namespaces, h.objects)
	if err != nil || !ok || len(h.conditions) == 0 {
		return m, ok, err
	}
	v, err := w.versioned(m)
	if err != nil {
		return m, false, apierrors.NewInternalError(err)
	}
	matcher, err := d.programs.conditions(h)
	if err != nil {
		return m, false, apierrors.NewInternalError(err)
	}
	result := matcher.Match(ctx, v, nil, d.authz)
	if result.Error != nil {
		return m, false, apierrors.NewForbidden(w.a.Resource.GroupResource(), w.a.Name, result.Error)
	}
	return m, result.Matches, nil
}

// patch applies a webhook's JSON patch to the object as it was shown to it.
func (w *write) patch(data []byte, m meaning, name string) error {
	ops, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return &failure{name, fmt.Errorf("received undecodable patch in webhook response: %w", err)}
	}
	if len(ops) == 0 {
		return nil
	}
	if w.obj == nil || w.projected {
		return apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", name))
	}
	shown, err := w.convert(w.obj, m.kind)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	before, err := json.Marshal(shown)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	after, err := ops.Apply(before)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	obj, err := w.read(after, m)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if equality.Semantic.DeepEqual(shown, obj) {
		return nil
	}
	if err := w.change(obj); err != nil {
		return apierrors.NewInternalError(err)
	}
	return nil
}

func (w *write) read(data []byte, m meaning) (runtime.Object, error) {
	if w.a.Kind.Custom != nil {
		return w.a.Kind.Custom.Read(data, false, false, m.kind.GroupVersion())
	}
	obj, err := codec.Scheme().New(m.kind)
	if err != nil {
		return nil, err
	}
	return obj, strictjson.UnmarshalCaseSensitivePreserveInts(data, obj)
}

// Validate lets policies and webhooks refuse the write. Webhooks are asked side
// by side; the first of them in the order of their names is heard.
func (d *Admission) Validate(ctx context.Context, a *registry.Attributes) error {
	hooks := d.validatingHooks()
	policies := d.policies.validatingFor()
	if len(hooks) == 0 && len(policies) == 0 {
		return nil
	}
	w, err := newWrite(d.reg, a)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if w.isExempt() {
		return nil
	}
	if err := d.validatePolicies(ctx, w, policies); err != nil {
		return err
	}
	type question struct {
		hook *hook
		as   meaning
	}
	var questions []question
	for _, h := range hooks {
		m, ok, err := d.concerns(ctx, h, w)
		if err != nil {
			return err
		}
		if ok {
			questions = append(questions, question{h, m})
		}
	}
	answers := make([]chan error, len(questions))
	for i, q := range questions {
		answers[i] = make(chan error, 1)
		go func() { // ends with the webhook's answer or its timeout
			_, err := d.ask(ctx, q.hook, w, q.as)
			answers[i] <- d.outcome(ctx, q.hook, err)
		}()
	}
	var first error
	for _, answer := range answers {
		if err := <-answer; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (d *Admission) mutatingHooks() []*hook {
	var out []*hook
	for _, c := range d.mutating.List("") {
		for i := range c.Webhooks {
			h := &c.Webhooks[i]
			out = append(out, &hook{
				name: h.Name, configuration: c.Name, client: &h.ClientConfig, rules: h.Rules, failurePolicy: h.FailurePolicy, matchPolicy: h.MatchPolicy,
				namespaces: h.NamespaceSelector, objects: h.ObjectSelector, sideEffects: h.SideEffects, timeoutSeconds: h.TimeoutSeconds,
				versions: h.AdmissionReviewVersions, conditions: h.MatchConditions, mutates: true,
				reinvoke: h.ReinvocationPolicy != nil && *h.ReinvocationPolicy == v1.IfNeededReinvocationPolicy,
			})
		}
	}
	return sorted(out)
}

func (d *Admission) validatingHooks() []*hook {
	var out []*hook
	for _, c := range d.validating.List("") {
		for i := range c.Webhooks {
			h := &c.Webhooks[i]
			out = append(out, &hook{
				name: h.Name, configuration: c.Name, client: &h.ClientConfig, rules: h.Rules, failurePolicy: h.FailurePolicy, matchPolicy: h.MatchPolicy,
				namespaces: h.NamespaceSelector, objects: h.ObjectSelector, sideEffects: h.SideEffects, timeoutSeconds: h.TimeoutSeconds,
				versions: h.AdmissionReviewVersions, conditions: h.MatchConditions,
			})
		}
	}
	return sorted(out)
}

// sorted: configurations are asked in the order of their names, their webhooks
// as they stand.
func sorted(hooks []*hook) []*hook {
	slices.SortStableFunc(hooks, func(a, b *hook) int { return strings.Compare(a.configuration, b.configuration) })
	return hooks
}
