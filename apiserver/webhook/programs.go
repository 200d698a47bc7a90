package webhook

import (
	"sync"
	"time"

	v1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
)

const (
	// programsIdle is how long compiled expressions stay after the last use.
	programsIdle = 5 * time.Minute
	// maxPrograms bounds what changed policies leave behind under constant use.
	maxPrograms = 256
)

// programs are compiled expressions, by the address of what they were compiled
// of: objects in the cache never change.
type programs struct {
	mu    sync.Mutex // guards what follows
	known map[any]any
	idle  *time.Timer
}

// compiled returns what was compiled of key, or compiles it.
func compiled[T any](p *programs, key any, compile func() (T, error)) (T, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle == nil {
		p.idle = time.AfterFunc(programsIdle, p.forget)
	} else {
		p.idle.Reset(programsIdle)
	}
	if have, ok := p.known[key].(T); ok {
		return have, nil
	}
	out, err := compile()
	if err != nil {
		return out, err
	}
	if p.known == nil || len(p.known) >= maxPrograms {
		p.known = map[any]any{}
	}
	p.known[key] = out
	return out, nil
}

func (p *programs) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = nil
}

func (p *programs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle != nil {
		p.idle.Stop()
	}
}

func baseEnv() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
}

// conditions are a webhook's matchConditions.
func (p *programs) conditions(h *hook) (matchconditions.Matcher, error) {
	return compiled(p, &h.conditions[0], func() (matchconditions.Matcher, error) {
		kind := "validating"
		if h.mutates {
			kind = "admit"
		}
		evaluator := plugincel.NewConditionCompiler(baseEnv()).CompileCondition(accessors(h.conditions), plugincel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.StoredExpressions)
		return matchconditions.NewMatcher(evaluator, h.failurePolicy, "webhook", kind, h.name), nil
	})
}

func accessors(conditions []v1.MatchCondition) []plugincel.ExpressionAccessor {
	out := make([]plugincel.ExpressionAccessor, len(conditions))
	for i := range conditions {
		out[i] = (*matchconditions.MatchCondition)(&conditions[i])
	}
	return out
}

func variables(in []v1.Variable) []plugincel.NamedExpressionAccessor {
	out := make([]plugincel.NamedExpressionAccessor, len(in))
	for i, v := range in {
		out[i] = &validating.Variable{Name: v.Name, Expression: v.Expression}
	}
	return out
}

// validator compiles a policy that refuses.
func (p *programs) validator(policy *v1.ValidatingAdmissionPolicy) (validating.Validator, error) {
	return compiled(p, policy, func() (validating.Validator, error) {
		spec := &policy.Spec
		all := plugincel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil, HasAuthorizer: true}
		plain := plugincel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil}
		c, err := plugincel.NewCompositedCompiler(baseEnv())
		if err != nil {
			return nil, err
		}
		c.CompileAndStoreVariables(variables(spec.Variables), all, environment.StoredExpressions)
		var matcher matchconditions.Matcher
		if len(spec.MatchConditions) > 0 {
			matcher = matchconditions.NewMatcher(c.CompileCondition(accessors(spec.MatchConditions), all, environment.StoredExpressions), spec.FailurePolicy, "policy", "validate", policy.Name)
		}
		validations := make([]plugincel.ExpressionAccessor, len(spec.Validations))
		messages := make([]plugincel.ExpressionAccessor, len(spec.Validations))
		for i, v := range spec.Validations {
			validations[i] = &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason}
			if v.MessageExpression != "" {
				messages[i] = &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}
			}
		}
		audit := make([]plugincel.ExpressionAccessor, len(spec.AuditAnnotations))
		for i, a := range spec.AuditAnnotations {
			audit[i] = &validating.AuditAnnotationCondition{Key: a.Key, ValueExpression: a.ValueExpression}
		}
		return validating.NewValidator(
			c.CompileCondition(validations, all, environment.StoredExpressions), matcher,
			c.CompileCondition(audit, all, environment.StoredExpressions),
			c.CompileCondition(messages, plain, environment.StoredExpressions), spec.FailurePolicy, nil), nil
	})
}

// mutation is a compiled policy that changes.
type mutation struct {
	compiler *plugincel.CompositedCompiler
	matcher  matchconditions.Matcher // nil: always
	patchers []patch.Patcher
}

func (p *programs) mutation(policy *v1.MutatingAdmissionPolicy) (*mutation, error) {
	return compiled(p, policy, func() (*mutation, error) {
		spec := &policy.Spec
		all := plugincel.OptionalVariableDeclarations{HasParams: spec.ParamKind != nil, HasAuthorizer: true}
		c, err := plugincel.NewCompositedCompiler(baseEnv())
		if err != nil {
			return nil, err
		}
		c.CompileAndStoreVariables(variables(spec.Variables), all, environment.StoredExpressions)
		out := &mutation{compiler: c}
		if len(spec.MatchConditions) > 0 {
			out.matcher = matchconditions.NewMatcher(c.CompileCondition(accessors(spec.MatchConditions), all, environment.StoredExpressions), spec.FailurePolicy, "policy", "validate", policy.Name)
		}
		patches := all
		patches.HasPatchTypes = true
		for _, m := range spec.Mutations {
			switch {
			case m.PatchType == v1.PatchTypeJSONPatch && m.JSONPatch != nil:
				out.patchers = append(out.patchers, patch.NewJSONPatcher(c.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, patches, environment.StoredExpressions)))
			case m.PatchType == v1.PatchTypeApplyConfiguration && m.ApplyConfiguration != nil:
				out.patchers = append(out.patchers, patch.NewApplyConfigurationPatcher(c.CompileMutatingEvaluator(&patch.ApplyConfigurationCondition{Expression: m.ApplyConfiguration.Expression}, patches, environment.StoredExpressions)))
			}
		}
		return out, nil
	})
}

// typesOf is a kind's converter for apply configurations.
func (p *programs) typesOf(w *write, m meaning) (managedfields.TypeConverter, error) {
	type typesKey struct{ kind, gvk any }
	return compiled(p, typesKey{w.a.Kind, m.kind}, func() (managedfields.TypeConverter, error) { return typeConverter(w.a.Kind, m.kind) })
}
