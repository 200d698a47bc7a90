package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSecretToken: what a Secret holds opens the API for its ServiceAccount, from
// outside of Pods, until it is deleted.
func TestSecretToken(t *testing.T) {
	p := newPlace(t)
	p.kubectl("create", "serviceaccount", "ci")
	p.kubectl("create", "role", "ci", "--verb=get,list", "--resource=configmaps")
	p.kubectl("create", "rolebinding", "ci", "--role=ci", "--serviceaccount="+p.ns+":ci")
	p.apply(`
apiVersion: v1
kind: Secret
metadata: {name: ci-token, annotations: {kubernetes.io/service-account.name: ci}}
type: kubernetes.io/service-account-token
`)
	var token string
	p.eventually(10*time.Second, "the token is there", func() error {
		data, err := base64.StdEncoding.DecodeString(p.kubectl("get", "secret", "ci-token", "-o", "jsonpath={.data.token}"))
		if token = string(data); err == nil && token == "" {
			err = fmt.Errorf("the Secret is empty")
		}
		return err
	})
	ca := p.kubectl("get", "secret", "ci-token", "-o", `jsonpath={.data.ca\.crt}`)
	if root := p.kubectl("get", "configmap", "kube-root-ca.crt", "-o", `jsonpath={.data.ca\.crt}`); ca != base64.StdEncoding.EncodeToString([]byte(root)) {
		t.Errorf("the Secret's CA is %.60s", ca)
	}
	as := func(args ...string) (string, error) {
		return p.Kubectl("", append([]string{"--kubeconfig=/dev/null", "--server=https://" + p.Addr.String() + ":6443", "--insecure-skip-tls-verify", "--token=" + token, "-n", p.ns}, args...)...)
	}
	if out, err := as("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); err != nil || out != "system:serviceaccount:"+p.ns+":ci" {
		t.Errorf("who it is: %q %v", out, err)
	}
	if out, err := as("get", "configmaps", "-o", "name"); err != nil || !strings.Contains(out, "kube-root-ca.crt") {
		t.Errorf("what it may: %q %v", out, err)
	}
	if out, err := as("get", "secrets"); err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("what it may not: %q %v", out, err)
	}
	p.kubectl("delete", "secret", "ci-token")
	p.eventually(10*time.Second, "the token is refused", func() error {
		if out, err := as("get", "configmaps"); err == nil || !strings.Contains(out, "must be logged in") {
			return fmt.Errorf("%q %v", out, err)
		}
		return nil
	})
}

// TestAggregatedRole: a role that a chart labels adds to what viewers may.
func TestAggregatedRole(t *testing.T) {
	p := newPlace(t)
	p.kubectl("create", "rolebinding", "eve", "--clusterrole=view", "--user=eve-of-"+p.ns)
	may := func() string {
		out, _ := p.Kubectl("", "-n", p.ns, "auth", "can-i", "list", "leases.coordination.k8s.io", "--as=eve-of-"+p.ns)
		return strings.TrimSpace(out)
	}
	if out := may(); !strings.HasSuffix(out, "no") {
		t.Errorf("before: %q", out)
	}
	p.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: e2e-view-leases, labels: {rbac.authorization.k8s.io/aggregate-to-view: "true"}}
rules: [{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list]}]
`)
	defer p.kubectl("delete", "clusterrole", "e2e-view-leases")
	p.eventually(10*time.Second, "viewers see leases", func() error {
		if out := may(); !strings.HasSuffix(out, "yes") {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
}
