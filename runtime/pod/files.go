package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxSearch is how many search domains a resolver is given; more are cut as in
// Kubernetes.
const maxSearch = 32

// DNS says how Pods resolve names.
type DNS struct {
	// Server is the cluster's, Domain its domain.
	Server, Domain string
	// HostResolvConf is the device's own file.
	HostResolvConf string
}

// resolvConf makes a Pod's resolver configuration.
func resolvConf(pod *corev1.Pod, d DNS) (string, error) {
	var servers, search, options []string
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		var err error
		if servers, search, options, err = readResolvConf(d.HostResolvConf); err != nil {
			return "", err
		}
	default:
		_, host, _, err := readResolvConf(d.HostResolvConf)
		if err != nil {
			return "", err
		}
		servers = []string{d.Server}
		search = append([]string{pod.Namespace + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}, host...)
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		servers = appendNew(servers, c.Nameservers...)
		search = appendNew(search, c.Searches...)
		for _, o := range c.Options {
			options = slices.DeleteFunc(options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			if o.Value != nil {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
	}
	if len(search) > maxSearch {
		search = search[:maxSearch]
	}
	var b strings.Builder
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String(), nil
}

func appendNew(list []string, more ...string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// readResolvConf reads resolv.conf(5). A device without the file has no names.
func readResolvConf(path string) (servers, search, options []string, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil, nil
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the device's resolver configuration: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain":
			search = search[:0]
			for _, s := range f[1:] {
				if s != "." {
					search = append(search, s)
				}
			}
		case "options":
			options = f[1:]
		}
	}
	return servers, search, options, nil
}

// hostname is the name that a Pod's containers see, at most 63 bytes.
func hostname(pod *corev1.Pod, domain string) (short, full string) {
	short = pod.Name
	if pod.Spec.Hostname != "" {
		short = pod.Spec.Hostname
	}
	if o := pod.Spec.HostnameOverride; o != nil {
		return *o, ""
	}
	if len(short) > 63 {
		short = strings.TrimRight(short[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		full = fmt.Sprintf("%s.%s.%s.svc.%s", short, pod.Spec.Subdomain, pod.Namespace, domain)
		if isTrue(pod.Spec.SetHostnameAsFQDN) {
			return full, full
		}
	}
	return short, full
}

// hostsFile makes a Pod's /etc/hosts, word for word the kubelet's.
func hostsFile(pod *corev1.Pod, ips []string, domain string) (string, error) {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("read the device's hosts file: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n")
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		short, full := hostname(pod, domain)
		for _, ip := range ips {
			if full != "" && full != short {
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, full, short)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, short)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String(), nil
}

// writeIfChanged keeps a file's inode: it is bind mounted into containers.
func writeIfChanged(path, text string) error {
	// A container may have made it of any size.
	if fi, err := os.Stat(path); err == nil && fi.Size() == int64(len(text)) {
		if old, err := os.ReadFile(path); err == nil && string(old) == text {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
