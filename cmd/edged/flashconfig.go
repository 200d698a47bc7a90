package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"edged/buildroot/pid1"
)

// checkCard refuses an edged.yaml with which a device would not start, or would found a
// cluster of its own where it was to join one: on the device nobody sees it.
func checkCard(text []byte) error {
	card, err := pid1.ParseConfig(text)
	if err != nil {
		return err
	}
	// The daemon reads them from files.
	dir, err := os.MkdirTemp("", "edged-flash")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	data, err := yaml.Marshal(card.FirstFlags())
	if err != nil {
		return err
	}
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		return err
	}
	for _, f := range []struct{ flag, needs, value, missing string }{
		{"cluster-secret-file", "cluster-name", card.Secret, "cluster: it needs secret, the same long random text on all cards"},
		{"token-file", "join", card.Token, "join: it needs token, the text that `edged token create` prints on a device of the cluster"},
	} {
		switch _, needed := values[f.needs]; {
		case f.value != "":
			path := filepath.Join(dir, f.flag)
			if err := os.WriteFile(path, []byte(f.value), 0o600); err != nil {
				return err
			}
			values[f.flag] = path
		case needed && values["token"] == nil:
			return fmt.Errorf("%s: %s", pid1.ConfigName, f.missing)
		}
	}
	var c config
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.runFlags(flags)
	c.nodeName = "edged" // its host name is checked above; this computer's is another
	if err := setFlags(flags, values, pid1.ConfigName); err != nil {
		return err
	}
	if err := c.validate(); err != nil {
		return fmt.Errorf("%s, as a flag of `edged run`: %w", pid1.ConfigName, err)
	}
	return nil
}
