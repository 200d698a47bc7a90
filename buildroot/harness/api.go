package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"edged/buildroot/pid1"
)

// API is a machine's Kubernetes API, as the administrator whose kubeconfig the
// device put on its boot partition.
type API struct {
	t      testing.TB
	url    string
	client *http.Client
	file   string // kubeconfig for kubectl
	node   string
}

type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			CA []byte `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Cert []byte `json:"client-certificate-data"`
			Key  []byte `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

// API waits for the kubeconfig on the card.
func (m *Machine) API(limit time.Duration) *API {
	m.t.Helper()
	var text []byte
	poll(m.t, limit, "the device to put a kubeconfig on the boot partition", func() error {
		var err error
		if text, err = m.Boot().ReadFile(pid1.KubeconfigName); err == nil && bytes.HasPrefix(text, []byte("#")) {
			err = fmt.Errorf("%s is as it was", pid1.KubeconfigName)
		}
		return err
	})
	var k kubeconfig
	must(m.t, yaml.Unmarshal(text, &k))
	if len(k.Clusters) == 0 || len(k.Users) == 0 {
		m.t.Fatalf("the kubeconfig is empty: %.200s", text)
	}
	pair, err := tls.X509KeyPair(k.Users[0].User.Cert, k.Users[0].User.Key)
	must(m.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(k.Clusters[0].Cluster.CA)
	a := &API{t: m.t, url: fmt.Sprintf("https://127.0.0.1:%d", m.APIPort), node: m.Name(limit), file: filepath.Join(m.dir, "kubeconfig"), client: &http.Client{
		Timeout:   20 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "kubernetes"}, MaxIdleConnsPerHost: 4},
	}}
	must(m.t, os.WriteFile(a.file, bytes.TrimRight(text, "\n"), 0o600))
	return a
}

// poll asks until there is no error, not so often that the emulated machine has
// nothing else to do.
func poll(t testing.TB, limit time.Duration, what string, ask func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// Do sends a request; an answer above 299 is an error.
func (a *API) Do(method, path string, body, out any) error {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, a.url+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode > 299 {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// Kubectl runs kubectl against the machine.
func (a *API) Kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command("kubectl", append([]string{"--kubeconfig", a.file, "--server", a.url, "--tls-server-name", "kubernetes", "--request-timeout", "30s"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// NodeReady waits until the device's Node is Ready.
func (a *API) NodeReady(limit time.Duration) {
	a.t.Helper()
	poll(a.t, limit, "the Node to be Ready", func() error {
		var node struct{ Status status }
		if err := a.Do(http.MethodGet, "/api/v1/nodes/"+a.node, nil, &node); err != nil {
			return err
		}
		if !node.Status.has("Ready") {
			return fmt.Errorf("its conditions are %+v", node.Status.Conditions)
		}
		return nil
	})
}

// PodPhase waits until a Pod is in a phase. A Pod that failed does not come to another.
func (a *API) PodPhase(name, phase string, limit time.Duration) {
	a.t.Helper()
	poll(a.t, limit, "Pod "+name+" to be "+phase, func() error {
		var pod struct{ Status status }
		if err := a.Do(http.MethodGet, "/api/v1/namespaces/default/pods/"+name, nil, &pod); err != nil {
			return err
		}
		if pod.Status.Phase == "Failed" && phase != "Failed" {
			a.t.Fatalf("Pod %s failed: %+v", name, pod.Status)
		}
		if pod.Status.Phase != phase {
			return fmt.Errorf("its status is %+v", pod.Status)
		}
		return nil
	})
}

// status is what is asked of a Node's or a Pod's status.
type status struct {
	Phase      string
	Conditions []struct{ Type, Status, Reason, Message string }
	Containers []struct{ State map[string]any } `json:"containerStatuses"`
}

// has tells whether a condition is True.
func (s status) has(condition string) bool {
	for _, c := range s.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}
