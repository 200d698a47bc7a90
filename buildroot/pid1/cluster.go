package pid1

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// minSecret is what cannot be guessed by trying; and it must not occur elsewhere
// in the file.
const minSecret = 16

// checkCluster refuses what cannot become a member of a cluster.
func (c Config) checkCluster() error {
	switch {
	case c.Secret != "" && c.Cluster == "":
		return errors.New("secret: it is of no use without cluster, the cluster's name")
	case c.Secret != "" && len(c.Secret) < minSecret:
		return fmt.Errorf("secret: it has %d characters, want at least %d", len(c.Secret), minSecret)
	case c.BootstrapExpect < 0 || c.BootstrapExpect > 0 && c.Cluster == "":
		return errors.New("bootstrap-expect: want a number of devices, and cluster, the cluster's name")
	case c.Cluster != "" && len(c.Join) > 0:
		return errors.New("cluster and join: devices find each other by one of them")
	case c.Token != "" && len(c.Join) == 0:
		return errors.New("token: it is of no use without join")
	}
	return nil
}

// hidden is a value of edged.yaml that does not stay there.
type hidden struct {
	key   string
	path  string // where it is kept, 0600
	flag  string // of `edged run`, with that path
	value func(Config) string
}

var hiddenValues = []hidden{
	{"secret", stateDir + "/cluster-secret", "cluster-secret-file", func(c Config) string { return c.Secret }},
	{"token", stateDir + "/join-token", "token-file", func(c Config) string { return c.Token }},
}

// WithoutSecrets blanks the values of the top-level keys secret and token and
// leaves everything else, comments included, as it is.
func WithoutSecrets(data []byte) []byte {
	lines := bytes.Split(data, []byte("\n"))
	for i, l := range lines {
		for _, h := range hiddenValues {
			// Decoding does not tell capitals apart.
			if key, _, found := bytes.Cut(l, []byte(":")); found && strings.EqualFold(strings.TrimSpace(string(key)), h.key) && key[0] != ' ' {
				taken := []byte("# " + h.key + ": taken")
				lines[i] = append(taken, bytes.Repeat([]byte(" "), max(0, len(l)-len(taken)))...)
			}
		}
	}
	return bytes.Join(lines, []byte("\n"))
}

// consumeSecrets moves what is hidden: first it is safe on the data partition,
// then it leaves the boot partition.
func (s *system) consumeSecrets() error {
	found := false
	for _, h := range hiddenValues {
		if v := h.value(s.config); v != "" {
			found = true
			if err := keepSecret(h.path, v); err != nil {
				return err
			}
		}
	}
	if !found {
		return nil
	}
	boot, v, err := s.openFAT()
	if err != nil {
		return err
	}
	defer boot.Close()
	data, err := v.ReadFile(ConfigName)
	if err != nil {
		return err
	}
	clean, err := wiped(data, s.config)
	if err != nil {
		return err
	}
	if err := v.Overwrite(boot, ConfigName, clean); err != nil {
		return err
	}
	return boot.Sync()
}

// wiped is edged.yaml without what is hidden, and as long as it was.
func wiped(data []byte, c Config) ([]byte, error) {
	clean := WithoutSecrets(data)
	for _, h := range hiddenValues {
		if v := h.value(c); v != "" && bytes.Contains(clean, []byte(v)) {
			return nil, fmt.Errorf("the %s is on several lines of %s and stays there: write it as one line `%s: …`", h.key, ConfigName, h.key)
		}
	}
	return PadConfig(clean)
}

func keepSecret(path, value string) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(stateDir)
}

// daemonFlags are the settings of `edged run` that follow from edged.yaml; has
// tells whether a file is there. What `edged` says itself wins.
func (c Config) daemonFlags(has func(path string) bool) map[string]any {
	flags := map[string]any{"set-clock": "always"} // nobody else does on this image
	if c.Cluster != "" {
		flags["cluster-name"], flags["discovery"] = c.Cluster, "mdns"
	}
	if c.BootstrapExpect > 0 {
		flags["bootstrap-expect"] = c.BootstrapExpect
	}
	if len(c.Join) > 0 {
		flags["join"] = c.Join
	}
	for _, h := range hiddenValues {
		// A secret without a name, or a token with nobody to join, is from before.
		if has(h.path) && (h.key == "secret" && c.Cluster != "" || h.key == "token" && len(c.Join) > 0) {
			flags[h.flag] = h.path
		}
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		labels = append(labels, k+"="+c.Labels[k])
	}
	if labels != nil {
		flags["node-label"] = labels
	}
	if len(c.Taints) > 0 {
		flags["node-taint"] = c.Taints
	}
	maps.Copy(flags, c.Edged)
	return flags
}

// FirstFlags are the settings of `edged run` at the first start of a card with this
// edged.yaml, by flag. Secret and token are in files of the device there.
func (c Config) FirstFlags() map[string]any {
	return c.daemonFlags(func(path string) bool {
		return slices.ContainsFunc(hiddenValues, func(h hidden) bool { return h.path == path && h.value(c) != "" })
	})
}

// daemonConfig writes the file that `edged run` reads.
func (s *system) daemonConfig() error {
	data, err := yaml.Marshal(s.config.daemonFlags(exists))
	if err != nil {
		return err
	}
	return os.WriteFile(configPath, data, 0o600)
}
