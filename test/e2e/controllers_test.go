package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const workloads = `
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "@every 2s"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "edged.example/busybox:1", command: ["true"]}]}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "100000"], env: [{name: V, value: "1"}]}]
---
apiVersion: v1
kind: Service
metadata: {name: dbs}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: dbs
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "100000"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: parts}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "edged.example/busybox:1", command: [sh, -c, 'echo part $JOB_COMPLETION_INDEX of $(hostname)']}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  backoffLimit: 3
  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "edged.example/busybox:1", command: [sh, -c, 'exit 42']}]}}
`

// TestWorkloads: each kind of workload does with kubectl what the documentation
// of Kubernetes says.
func TestWorkloads(t *testing.T) {
	p := newPlace(t)
	p.apply(workloads)
	want := func(what, got, wanted string) {
		t.Helper()
		if strings.TrimSpace(got) != wanted {
			t.Errorf("%s: %q, want %q", what, strings.TrimSpace(got), wanted)
		}
	}

	p.kubectl("rollout", "status", "daemonset/everywhere", "--timeout=60s")
	p.kubectl("set", "env", "daemonset/everywhere", "V=2")
	p.kubectl("rollout", "status", "daemonset/everywhere", "--timeout=60s")
	p.kubectl("rollout", "undo", "daemonset/everywhere")
	p.kubectl("rollout", "status", "daemonset/everywhere", "--timeout=60s")
	want("the DaemonSet's Pod after the rollback", p.kubectl("get", "pods", "-l", "app=everywhere", "-o", "jsonpath={.items[*].spec.containers[0].env[0].value}"), "1")
	if out := p.kubectl("rollout", "history", "daemonset/everywhere"); !strings.Contains(out, "\n2 ") || !strings.Contains(out, "\n3 ") {
		t.Errorf("rollout history: %s", out)
	}

	p.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
	want("the names in DNS", p.kubectl("exec", "db-1", "--", "sh", "-c", "hostname; nslookup db-0.dbs."+p.ns+".svc.cluster.local >/dev/null && echo found"), "db-1\nfound")
	p.kubectl("scale", "statefulset/db", "--replicas=1")
	p.kubectl("wait", "--for=delete", "pod/db-1", "--timeout=60s")

	p.kubectl("wait", "--for=condition=complete", "job/parts", "--timeout=60s")
	want("the indexes done", p.kubectl("get", "job", "parts", "-o", "jsonpath={.status.completedIndexes} {.status.succeeded}"), "0-2 3")
	want("the last index said", p.kubectl("logs", "-l", "job-name=parts,batch.kubernetes.io/job-completion-index=2"), "part 2 of parts-2")
	p.kubectl("wait", "--for=condition=failed", "job/hopeless", "--timeout=60s")
	want("why the Job failed", p.kubectl("get", "job", "hopeless", "-o", `jsonpath={.status.conditions[?(@.type=="Failed")].reason} {.status.failed}`), "PodFailurePolicy 1")

	p.eventually(60*time.Second, "the CronJob ran", func() error {
		if out := p.kubectl("get", "cronjob", "tick", "-o", "jsonpath={.status.lastSuccessfulTime}"); out == "" {
			return fmt.Errorf("no success yet")
		}
		return nil
	})
}

// TestDrainMindsBudgets: a drain waits for a PodDisruptionBudget and goes on
// when there is room; a quota refuses what it has no room for.
func TestDrainMindsBudgets(t *testing.T) {
	p := newPlace(t)
	p.apply(`
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: ` + p.ns + `}}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: few}
spec: {hard: {configmaps: 2}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: ` + p.ns + `}}
  template:
    metadata: {labels: {app: ` + p.ns + `}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "edged.example/busybox:1", command: [sleep, "100000"]}]
`)
	p.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	p.kubectl("wait", "--for=jsonpath={.status.currentHealthy}=1", "poddisruptionbudget/web", "--timeout=30s")
	node := strings.TrimSpace(p.MustKubectl("", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	drain := func(timeout string) (string, error) {
		return p.Kubectl("", "drain", node, "--pod-selector=app="+p.ns, "--timeout="+timeout)
	}
	defer p.MustKubectl("", "uncordon", node)
	out, err := drain("2s")
	if both := fmt.Sprint(out, err); err == nil || !strings.Contains(both, "Cannot evict pod as it would violate the pod's disruption budget.") {
		t.Errorf("a drain beyond the budget: %v", both)
	}
	p.kubectl("patch", "poddisruptionbudget", "web", "-p", `{"spec":{"minAvailable":0}}`)
	if out, err := drain("60s"); err != nil || !strings.Contains(out, "drained") {
		t.Errorf("a drain within the budget: %s %v", out, err)
	}

	p.kubectl("create", "configmap", "one")
	out, err = p.Kubectl("", "-n", p.ns, "create", "configmap", "two")
	if both := fmt.Sprint(out, err); err == nil || !strings.Contains(both, "exceeded quota: few, requested: configmaps=1, used: configmaps=2, limited: configmaps=2") {
		t.Errorf("one ConfigMap too many: %v", both)
	}
}
