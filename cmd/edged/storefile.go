package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// fromFile reads settings from a file as etcd's --config-file is: flags by their
// names, and a section for each of the two sets of TLS settings. As in etcd, other
// flags and the environment then count for nothing.
func fromFile(fs *pflag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return misusef("--config-file: %w", err)
	}
	var settings map[string]any
	if err := yaml.Unmarshal(data, &settings); err != nil {
		return misusef("--config-file: %s: %w", path, err)
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value, prefix := settings[name], ""
		switch name {
		case "peer-transport-security":
			prefix = "peer-"
			fallthrough
		case "client-transport-security":
			section, ok := value.(map[string]any)
			if !ok && value != nil {
				return misusef("--config-file: %s: %s is no section", path, name)
			}
			for _, key := range slices.Sorted(maps.Keys(section)) {
				if err := setFromFile(fs, path, tlsFlag(prefix, key), section[key]); err != nil {
					return err
				}
			}
			continue
		}
		if err := setFromFile(fs, path, name, value); err != nil {
			return err
		}
	}
	return nil
}

// tlsFlag is the flag of a setting in one of the sections.
func tlsFlag(prefix, key string) string {
	switch key {
	case "allowed-cn", "allowed-hostname":
		if prefix == "" {
			prefix = "client-"
		}
		return prefix + "cert-" + key
	case "skip-client-san-verification":
		return "peer-" + key
	}
	return prefix + key
}

func setFromFile(fs *pflag.FlagSet, path, name string, value any) error {
	f := fs.Lookup(name)
	if f == nil || name == "config-file" {
		return misusef("--config-file: %s: unknown setting %q", path, name)
	}
	text := ""
	switch v := value.(type) {
	case nil:
		return nil // named, and left as it is
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = fmt.Sprint(item)
		}
		text = strings.Join(items, ",")
	case float64:
		text = fmt.Sprintf("%.0f", v) // all numbers are whole
	default:
		text = fmt.Sprint(v)
	}
	if text == "" {
		return nil
	}
	if err := fs.Set(f.Name, text); err != nil {
		return misusef("--config-file: %s: %s: %w", path, name, err)
	}
	return nil
}
