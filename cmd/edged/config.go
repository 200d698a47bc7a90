package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"edged/cluster/clock"
	"edged/cluster/join"
	"edged/net/announce"
	"edged/raftstore"
)

// config is what a device is told. Its flags are the one table of settings:
// the keys of the file at --config are the flags' names, and flags win.
type config struct {
	configFile    string
	dataDir       string
	runDir        string
	nodeName      string
	nodeIP        string
	apiListen     string
	kubeletListen string
	etcdListen    string
	peerListen    string
	join          []string
	token         string
	tokenFile     string
	role          string
	voters        int
	setClock      string
	metered       bool
	logsInMemory  bool
	containerd    string

	discovery, clusterName, clusterSecretFile string
	bootstrapExpect                           int

	clusterCIDR   string
	serviceCIDR   string
	clusterDNS    string
	clusterDomain string
	apiVIP        string
	lbPool        []string
	imageDir      string
	snapshotDir   string
	snapshotKeep  int
	manifestsDir  string
	cniConfDir    string // empty: the bridge connects Pods
	cniBinDirs    []string
	logLevel      string
	nodeLabels    []string
	nodeTaints    []string

	snapshotInterval time.Duration
	snapshotAccept   []string

	// given are the flags that were set, by the command line or the file.
	given map[string]bool

	// parsed by validate
	parsed struct {
		token              join.Token
		secret             []byte // of --cluster-secret-file
		peer               netip.AddrPort
		nodeIP             netip.Addr // invalid: found out at start
		api, kubelet, etcd netip.AddrPort
		// At most one per address family, the cluster's first family first.
		clusterCIDRs, serviceCIDRs []netip.Prefix
		clusterDNS                 []netip.Addr
		apiVIP                     netip.Addr // invalid: none
		snapshotNode, snapshotDir  string     // empty: this device, the default
		lbPool                     announce.Pool
		logLevel                   slog.Level
		labels                     map[string]string
		taints                     []taint
	}
}

type taint struct{ key, value, effect string }

const defaultConfigFile = "/etc/edged/config.yaml"

// folderFlags are the flags that every subcommand has that looks at a device.
func (c *config) folderFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.configFile, "config", defaultConfigFile, "YAML `file` with these flags as keys; need not exist if it is the default")
	fs.StringVar(&c.dataDir, "data-dir", "/var/lib/edged", "`folder` for what must survive a reboot")
	fs.StringVar(&c.runDir, "run-dir", "/run/edged", "`folder` for what must not: sockets, namespaces")
}

func (c *config) runFlags(fs *pflag.FlagSet) {
	c.folderFlags(fs)
	fs.StringVar(&c.nodeName, "node-name", "", "`name` of this device in the cluster (default the host name)")
	fs.StringVar(&c.nodeIP, "node-ip", "", "`address` of this device (default the one of the default route's link)")
	fs.StringVar(&c.apiListen, "api-listen", "0.0.0.0:6443", "`address:port` of the Kubernetes API")
	fs.StringVar(&c.kubeletListen, "kubelet-listen", "0.0.0.0:10250", "`address:port` of the kubelet API")
	fs.StringVar(&c.etcdListen, "etcd-listen", "127.0.0.1:2379", "`address:port` of the etcd API, for clients with an administrator's certificate; empty turns it off")
	fs.StringVar(&c.peerListen, "peer-listen", "0.0.0.0:2380", "`address:port` at which the other devices reach this one's store")
	fs.StringSliceVar(&c.join, "join", nil, "`host:port` of the API of a device whose cluster to join at the first start; may be repeated, any may be down")
	fs.StringVar(&c.token, "token", "", "`token` for --join, from `edged token create` on a device of the cluster; prefer --token-file")
	fs.StringVar(&c.tokenFile, "token-file", "", "`file` that holds the token for --join")
	fs.StringVar(&c.discovery, "discovery", discoveryMembers, "mdns: find devices with the same --cluster-name and secret on the links and become one cluster with them; members: only those of its own cluster, when it misses them; none")
	fs.StringVar(&c.clusterName, "cluster-name", "", "`name` of the cluster for --discovery")
	fs.StringVar(&c.clusterSecretFile, "cluster-secret-file", "", "`file` that holds the secret that the devices of --cluster-name have in common: a random text of at least 16 characters")
	fs.IntVar(&c.bootstrapExpect, "bootstrap-expect", 1, "how many devices must be there before --discovery founds a cluster: more than half of those that will be")
	fs.StringVar(&c.role, "role", roleAuto, "auto; witness: vote and hold the state, run no Pods")
	fs.IntVar(&c.voters, "voters", raftstore.DefaultVoters, "how many devices vote at most; the others keep the state too")
	fs.BoolVar(&c.metered, "metered", false, "this device pays for what it sends: the whole cluster is quiet, and slower to notice what is lost")
	fs.BoolVar(&c.logsInMemory, "logs-in-memory", false, "keep containers' logs in memory, smaller ones: they are lost with the power, and no card is worn by them")
	fs.StringVar(&c.setClock, "set-clock", string(clock.Auto), "when to set this machine's clock to the cluster's time: auto: if nobody has set it yet; always: when it is wrong and not synchronised; never")
	fs.StringVar(&c.clusterCIDR, "cluster-cidr", "10.42.0.0/16", "`prefix` of Pod addresses, or an IPv4 and an IPv6 one; each device gets a /24, a /64 of it")
	fs.StringVar(&c.serviceCIDR, "service-cidr", "10.43.0.0/16", "`prefix` of Service addresses, or an IPv4 and an IPv6 one")
	fs.StringVar(&c.clusterDNS, "cluster-dns", "10.43.0.10", "`address` that Pods ask for names, out of --service-cidr; or one per family")
	fs.StringVar(&c.clusterDomain, "cluster-domain", "cluster.local", "DNS `domain` of the cluster")
	fs.StringVar(&c.apiVIP, "api-vip", "", "`address` of the API that the leader has, on a network of its links; the same on all devices")
	fs.StringSliceVar(&c.lbPool, "lb-pool", nil, "`range` of addresses for Services of type LoadBalancer (a-b, a prefix, an address); may be repeated; the same on all devices")
	fs.StringVar(&c.imageDir, "image-dir", "", "`folder` of image archives to import at start (default <data-dir>/images)")
	c.snapshotFlags(fs)
	fs.StringVar(&c.containerd, "containerd", "", "`socket` of a containerd that is already on this device, to share its images and layers (default none: edged keeps its own)")
	fs.StringVar(&c.cniConfDir, "cni-conf-dir", "", "`folder` of a CNI configuration (*.conflist, *.conf) whose plugins connect Pods in the bridge's place")
	fs.StringSliceVar(&c.cniBinDirs, "cni-bin-dir", []string{"/opt/cni/bin"}, "`folders` of the programs of --cni-conf-dir")
	fs.StringVar(&c.manifestsDir, "manifests-dir", "", "`folder` of manifests (*.yaml, *.yml, *.json) to apply at start and when they change (default <data-dir>/manifests)")
	fs.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringSliceVar(&c.nodeLabels, "node-label", nil, "`key=value` to label this device with; may be repeated")
	fs.StringSliceVar(&c.nodeTaints, "node-taint", nil, "`key=value:Effect` to taint this device with at its first start; may be repeated")
}

// parse reads args and the file at --config into c. register adds the flags
// that the subcommand has.
func (c *config) parse(name string, args []string, register func(*pflag.FlagSet)) (help string, err error) {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	register(flags)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return fmt.Sprintf("Usage: edged %s [flags]\n\n%s", name, flags.FlagUsages()), nil
		}
		return "", misusef("%w; `edged %s --help` lists the flags", err, name)
	}
	if flags.NArg() > 0 {
		return "", misusef("unexpected argument %q", flags.Arg(0))
	}
	if err := c.readFile(flags); err != nil {
		return "", err
	}
	c.given = map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { c.given[f.Name] = true })
	return "", nil
}

// readFile sets the flags that the command line did not. A key that only
// another subcommand knows is passed over, so that one file serves all.
func (c *config) readFile(flags *pflag.FlagSet) error {
	data, err := os.ReadFile(c.configFile)
	if errors.Is(err, fs.ErrNotExist) && !flags.Changed("config") {
		return nil
	}
	if err != nil {
		return misusef("--config: %w", err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return misusef("%s: %w", c.configFile, err)
	}
	return setFlags(flags, values, c.configFile)
}

// setFlags sets the flags that the command line did not from the file at source.
func setFlags(flags *pflag.FlagSet, values map[string]any, source string) error {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(config).runFlags(all)
	for key, v := range values {
		if all.Lookup(key) == nil || key == "config" {
			return misusef("%s: unknown key %q", source, key)
		}
		f := flags.Lookup(key)
		if f == nil || f.Changed {
			continue
		}
		if err := setFlag(flags, key, v); err != nil {
			return misusef("%s: %s: %w", source, key, err)
		}
	}
	return nil
}

func setFlag(flags *pflag.FlagSet, key string, v any) error {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, item := range list {
		switch item.(type) {
		case string, float64, bool:
		default:
			return fmt.Errorf("want a text, a number or a list of them, got %T", item)
		}
		if err := flags.Set(key, fmt.Sprint(item)); err != nil {
			return err
		}
	}
	return nil
}

// validate checks every setting and fills c.parsed; the error names the flag.
func (c *config) validate() (err error) {
	if c.nodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host name for --node-name: %w", err)
		}
		c.nodeName = strings.ToLower(host)
	}
	if msgs := validation.IsDNS1123Subdomain(c.nodeName); len(msgs) > 0 {
		return misusef("--node-name: %q: %s", c.nodeName, msgs[0])
	}
	if msgs := validation.IsDNS1123Subdomain(c.clusterDomain); len(msgs) > 0 {
		return misusef("--cluster-domain: %q: %s", c.clusterDomain, msgs[0])
	}
	if err := c.parsed.logLevel.UnmarshalText([]byte(c.logLevel)); err != nil {
		return misusef("--log-level: %q is not debug, info, warn or error", c.logLevel)
	}
	for _, dir := range []struct {
		flag string
		path *string
	}{{"data-dir", &c.dataDir}, {"run-dir", &c.runDir}} {
		abs, err := filepath.Abs(*dir.path)
		if err != nil || *dir.path == "" {
			return misusef("--%s: %q is not a folder's path", dir.flag, *dir.path)
		}
		*dir.path = abs
	}
	if c.imageDir == "" {
		c.imageDir = filepath.Join(c.dataDir, "images")
	}
	if c.manifestsDir == "" {
		c.manifestsDir = filepath.Join(c.dataDir, "manifests")
	}
	if c.manifestsDir, err = filepath.Abs(c.manifestsDir); err != nil {
		return misusef("--manifests-dir: %w", err)
	}
	if c.containerd != "" {
		// unix:// as the kubelet has it.
		if c.containerd, err = filepath.Abs(strings.TrimPrefix(c.containerd, "unix://")); err != nil {
			return misusef("--containerd: %w", err)
		}
	}
	if err := c.validateNetwork(); err != nil {
		return err
	}
	if err := c.validateJoin(); err != nil {
		return err
	}
	if c.role != roleAuto && c.role != roleWitness {
		return misusef("--role: %q is not auto or witness", c.role)
	}
	if m := clock.Mode(c.setClock); m != clock.Auto && m != clock.Always && m != clock.Never {
		return misusef("--set-clock: %q is not auto, always or never", c.setClock)
	}
	if err := c.validateSnapshots(); err != nil {
		return err
	}
	if err := c.validateDiscovery(); err != nil {
		return err
	}
	return c.validateNode()
}

func (c *config) validateJoin() (err error) {
	if c.voters < 1 || c.voters%2 == 0 {
		return misusef("--voters: %d is not an odd number", c.voters)
	}
	for _, addr := range c.join {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
			return misusef("--join: %q is not host:port", addr)
		}
	}
	switch {
	case c.token != "" && c.tokenFile != "":
		return misusef("--token and --token-file: give one of them")
	case c.tokenFile != "":
		data, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return misusef("--token-file: %w", err)
		}
		if c.parsed.token, err = join.ParseToken(string(data)); err != nil {
			return misusef("--token-file: %w", err)
		}
	case c.token != "":
		if c.parsed.token, err = join.ParseToken(c.token); err != nil {
			return misusef("--token: %w", err)
		}
	case len(c.join) > 0:
		return misusef("--join: a token is needed, from `edged token create` on a device of the cluster: --token-file or --token")
	}
	return nil
}

func (c *config) validateNetwork() (err error) {
	p := &c.parsed
	for _, l := range []struct {
		flag, value string
		to          *netip.AddrPort
		optional    bool
	}{
		{"api-listen", c.apiListen, &p.api, false},
		{"kubelet-listen", c.kubeletListen, &p.kubelet, false},
		{"peer-listen", c.peerListen, &p.peer, false},
		{"etcd-listen", c.etcdListen, &p.etcd, true},
	} {
		if l.value == "" && l.optional {
			continue
		}
		if *l.to, err = netip.ParseAddrPort(l.value); err != nil {
			return misusef("--%s: %q is not address:port", l.flag, l.value)
		}
	}
	if c.nodeIP != "" {
		if p.nodeIP, err = netip.ParseAddr(c.nodeIP); err != nil {
			return misusef("--node-ip: %q is not an IP address", c.nodeIP)
		}
	}
	if p.clusterCIDRs, err = prefixList("cluster-cidr", c.clusterCIDR, 24, 64); err != nil {
		return err
	}
	if p.serviceCIDRs, err = prefixList("service-cidr", c.serviceCIDR, 28, 124); err != nil {
		return err
	}
	if err := sameFamilies(p.clusterCIDRs, p.serviceCIDRs); err != nil {
		return err
	}
	if p.clusterDNS, err = addrList("cluster-dns", c.clusterDNS); err != nil {
		return err
	}
	if c.apiVIP != "" {
		if p.apiVIP, err = netip.ParseAddr(c.apiVIP); err != nil || !p.apiVIP.IsGlobalUnicast() {
			return misusef("--api-vip: %q is not an address that a device can have", c.apiVIP)
		}
	}
	if p.lbPool, err = announce.ParsePool(c.lbPool); err != nil {
		return misusef("--lb-pool: %w", err)
	}
	for _, a := range p.clusterDNS {
		if !slices.ContainsFunc(p.serviceCIDRs, func(s netip.Prefix) bool { return s.Contains(a) }) {
			return misusef("--cluster-dns: %s is not in --service-cidr %s", a, c.serviceCIDR)
		}
	}
	return nil
}

// sameFamilies checks what Kubernetes asks of the two ranges: Services of a
// family need Pods of it, the first family is the same, and nothing overlaps.
func sameFamilies(cluster, service []netip.Prefix) error {
	if cluster[0].Addr().Is4() != service[0].Addr().Is4() {
		return misusef("--cluster-cidr begins with %s and --service-cidr with %s: the first address family must be the same", cluster[0], service[0])
	}
	if len(service) > len(cluster) {
		return misusef("--service-cidr has two address families and --cluster-cidr one")
	}
	for _, a := range cluster {
		for _, b := range service {
			if a.Overlaps(b) {
				return misusef("--cluster-cidr %s and --service-cidr %s overlap", a, b)
			}
		}
	}
	return nil
}

// prefixList reads one prefix, or one of each address family. longest is the
// longest prefix that has room.
func prefixList(flag, value string, longest4, longest6 int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for s := range strings.SplitSeq(value, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, misusef("--%s: %q is not a prefix like 10.42.0.0/16", flag, s)
		}
		if p != p.Masked() {
			return nil, misusef("--%s: %s has bits set beyond its length; did you mean %s?", flag, p, p.Masked())
		}
		longest := longest4
		if p.Addr().Is6() {
			longest = longest6
		}
		if p.Bits() > longest {
			return nil, misusef("--%s: %s is too small, want at most /%d", flag, p, longest)
		}
		out = append(out, p)
	}
	if len(out) > 2 || len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		return nil, misusef("--%s: %s is more than one prefix of each address family", flag, value)
	}
	return out, nil
}

// addrList reads one address, or one of each family.
func addrList(flag, value string) ([]netip.Addr, error) {
	var out []netip.Addr
	for s := range strings.SplitSeq(value, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil {
			return nil, misusef("--%s: %q is not an IP address", flag, s)
		}
		out = append(out, a)
	}
	if len(out) > 2 || len(out) == 2 && out[0].Is4() == out[1].Is4() {
		return nil, misusef("--%s: %s is more than one address of each family", flag, value)
	}
	return out, nil
}

var taintPattern = regexp.MustCompile(`^([^=:]+)(?:=([^:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)$`)

func (c *config) validateNode() error {
	c.parsed.labels = map[string]string{}
	for _, l := range c.nodeLabels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || len(validation.IsQualifiedName(k)) > 0 || len(validation.IsValidLabelValue(v)) > 0 {
			return misusef("--node-label: %q is not key=value as Kubernetes' labels are", l)
		}
		c.parsed.labels[k] = v
	}
	c.parsed.taints = nil
	for _, t := range c.nodeTaints {
		m := taintPattern.FindStringSubmatch(t)
		if m == nil || len(validation.IsQualifiedName(m[1])) > 0 || len(validation.IsValidLabelValue(m[2])) > 0 {
			return misusef("--node-taint: %q is not key=value:Effect with Effect one of NoSchedule, PreferNoSchedule, NoExecute", t)
		}
		c.parsed.taints = append(c.parsed.taints, taint{m[1], m[2], m[3]})
	}
	return nil
}
