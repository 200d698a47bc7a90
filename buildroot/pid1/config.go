package pid1

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"edged/buildroot/fat"
)

// Config is edged.yaml on the boot partition, the same for all cards.
type Config struct {
	// Hostname may hold {serial}; edged-{serial} if empty.
	Hostname string `json:"hostname,omitempty"`
	// Network has what DHCP does not tell. Links that it does not name use DHCP.
	Network NetworkConfig `json:"network,omitempty"`
	// NTP are the time servers, in place of DHCP's and pool.ntp.org.
	NTP []string `json:"ntp,omitempty"`
	// Cluster is its name: devices with the same name and secret find each other.
	Cluster string `json:"cluster,omitempty"`
	// Secret of the cluster and Token for Join: moved to the data partition and
	// wiped from the card's readable part at the first start.
	Secret string `json:"secret,omitempty"`
	Token  string `json:"token,omitempty"`
	// BootstrapExpect is how many devices found the cluster.
	BootstrapExpect int `json:"bootstrap-expect,omitempty"`
	// Join are devices (host:6443) of a cluster that is there already.
	Join   []string          `json:"join,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Taints []string          `json:"taints,omitempty"`
	// Data: "recreate" makes a damaged data partition anew.
	Data string `json:"data,omitempty"`
	// Kubeconfig: "boot" puts an administrator's kubeconfig, good for a year, on the
	// boot partition when the device is ready: the machine has no login.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Edged are flags of `edged run`.
	Edged map[string]any `json:"edged,omitempty"`
}

// NetworkConfig is static addressing.
type NetworkConfig struct {
	Links []LinkConfig `json:"links,omitempty"`
	DNS   []netip.Addr `json:"dns,omitempty"`
}

// LinkConfig is one link's.
type LinkConfig struct {
	Name    string       `json:"name"`
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitempty"`
}

// ConfigName is the file on the boot partition. It has a fixed size, so that it
// is rewritten in place: [PadConfig].
const (
	ConfigName  = "edged.yaml"
	ConfigBytes = 16384
	// KubeconfigName is where Kubeconfig puts it, and as long.
	KubeconfigName = "kubeconfig.yaml"
)

// ParseConfig reads edged.yaml and refuses what it does not know.
func ParseConfig(data []byte) (c Config, err error) {
	data = bytes.TrimRight(data, " \n\x00")
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", ConfigName, readable(err))
	}
	if c.Data != "" && c.Data != "recreate" {
		return Config{}, fmt.Errorf("%s: data: %q is not recreate", ConfigName, c.Data)
	}
	if c.Kubeconfig != "" && c.Kubeconfig != "boot" {
		return Config{}, fmt.Errorf("%s: kubeconfig: %q is not boot", ConfigName, c.Kubeconfig)
	}
	for _, err := range []error{c.checkCluster(), c.Network.check(), checkTexts(data), checkHostname(c.Hostname)} {
		if err != nil {
			return Config{}, fmt.Errorf("%s: %w", ConfigName, err)
		}
	}
	for _, key := range []string{"config", "data-dir", "run-dir"} {
		if _, set := c.Edged[key]; set {
			return Config{}, fmt.Errorf("%s: edged: %s is fixed on this image", ConfigName, key)
		}
	}
	return c, nil
}

// readable says what is wrong with edged.yaml without the words of Go's decoders.
func readable(err error) error {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		have, _, _ := strings.Cut(kind.Value, " ") // the value itself may follow
		have = cmp.Or(map[string]string{"string": "a text", "bool": "true or false", "number": "a number", "array": "a list", "object": "keys with values"}[have], have)
		want := cmp.Or(map[reflect.Kind]string{reflect.String: "a text", reflect.Slice: "a list like [a, b]", reflect.Int: "a whole number"}[kind.Type.Kind()], "keys with values")
		if kind.Field == "" {
			return fmt.Errorf("want %s, not %s", want, have)
		}
		return fmt.Errorf("%s: want %s, not %s", kind.Field, want, have)
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	text := err.Error()
	if field, ok := strings.CutPrefix(text, "json: unknown field "); ok {
		return fmt.Errorf("there is no key %s", field)
	}
	if strings.Contains(text, "Parse") { // of net/netip, which no other key has
		return fmt.Errorf("network: want addresses like 10.0.0.2, and those of links with their length, 10.0.0.2/24: %s", text)
	}
	return errors.New(strings.Join(strings.Fields(text), " ")) // YAML's are on several lines
}

// checkTexts refuses a secret that YAML takes for a number: what it is turned into may
// be another text than was meant.
func checkTexts(data []byte) error {
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		return readable(err)
	}
	for _, h := range hiddenValues {
		if _, text := values[h.key].(string); values[h.key] != nil && !text {
			return fmt.Errorf("%s: YAML does not take it for a text: put it into quotes", h.key)
		}
	}
	return nil
}

var hostnamePattern = regexp.MustCompile(`^[a-zA-Z0-9]([-.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)

func checkHostname(pattern string) error {
	if name := strings.ReplaceAll(pattern, "{serial}", "00000000"); name != "" && !hostnamePattern.MatchString(name) {
		return fmt.Errorf("hostname: %q is none: want at most 63 letters, digits and hyphens, and {serial} for the board's number", pattern)
	}
	return nil
}

func (n NetworkConfig) check() error {
	seen := map[string]bool{}
	for _, l := range n.Links {
		switch {
		case l.Name == "" || !l.Address.IsValid() || !l.Address.Addr().Is4():
			return errors.New("network: a link needs a name and an IPv4 address like 10.0.0.2/24")
		case l.Gateway.IsValid() && !l.Address.Contains(l.Gateway):
			return fmt.Errorf("network: %s: the gateway %s is not in %s", l.Name, l.Gateway, l.Address.Masked())
		case seen[l.Name]:
			return fmt.Errorf("network: %s is there twice", l.Name)
		}
		seen[l.Name] = true
	}
	return nil
}

// PadConfig makes a config as long as the file on the boot partition.
func PadConfig(data []byte) ([]byte, error) {
	data = bytes.TrimRight(data, " \n\x00")
	if len(data) >= ConfigBytes {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", ConfigName, len(data), ConfigBytes)
	}
	return append(data, bytes.Repeat([]byte("\n"), ConfigBytes-len(data))...), nil
}

func (s *system) readConfig() error {
	f, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := v.ReadFile(ConfigName)
	if err != nil {
		return err
	}
	s.config, err = ParseConfig(data)
	return err
}

// holds tells whether the daemon must not start for what was wrong with edged.yaml: a
// device that is of no cluster yet would found one of its own, and stay in it when the
// file is mended. One without the file is meant to.
func holds(configErr error, dataDir string) bool {
	return configErr != nil && !errors.Is(configErr, fat.ErrNotExist) && !exists(filepath.Join(dataDir, "store"))
}

// giveKubeconfig puts the administrator's kubeconfig on the boot partition.
func (s *system) giveKubeconfig() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := os.StartProcess("/bin/edged", []string{"edged", "kubeconfig", "--ttl", "8760h"},
		&os.ProcAttr{Dir: "/", Files: []*os.File{nil, w, s.console.f}})
	w.Close()
	if err != nil {
		return err
	}
	// Whoever reaps collects it; what counts is what it printed.
	if err := p.Release(); err != nil {
		return err
	}
	// The loop that asks for it is watched.
	if err := r.SetReadDeadline(time.Now().Add(loopMax / 2)); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(r, ConfigBytes))
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return errors.New("the daemon gave none")
	}
	if data, err = PadConfig(data); err != nil {
		return err
	}
	boot, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer boot.Close()
	if err := v.Overwrite(boot, KubeconfigName, data); err != nil {
		return err
	}
	return boot.Sync()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// physicalLinks are the links that belong to a device, in the order of names.
func physicalLinks() (out []string) {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if exists(filepath.Join("/sys/class/net", e.Name(), "device")) && !strings.HasPrefix(e.Name(), "wl") {
			out = append(out, e.Name())
		}
	}
	return out
}
