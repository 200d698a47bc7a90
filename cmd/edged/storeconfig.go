package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"edged/raftstore"
)

// storeConfig is what `edged store` is told, in etcd's flags.
type storeConfig struct {
	version bool

	name, dataDir, configFile                  string
	listenClient, advertiseClient              []string
	listenPeer, advertisePeer                  []string
	listenClientHTTP, listenMetrics            []string
	initialCluster, initialState, initialToken string
	heartbeatMillis, electionMillis            uint
	quota                                      int64
	maxRequestBytes, maxTxnOps, maxLearners    int
	catchUp, snapshotCount, defragAbove        uint64
	strictReconfig, preVote, forceNew, gateway bool
	compactionMode, compactionRetention        string
	authToken                                  string
	authTokenTTL                               uint
	bcryptCost                                 int
	progressInterval                           time.Duration
	corruptCheck, compactHashCheck             time.Duration
	compactionBatch                            int
	compactionSleep                            time.Duration
	slowApply, slowRequest                     time.Duration
	keepaliveMinTime, keepaliveInterval        time.Duration
	keepaliveTimeout                           time.Duration
	maxStreams                                 uint32
	client, peer                               tlsConfig
	discovery                                  discoveryConfig
	logger, level, logFormat                   string
	logOutputs                                 []string
	featureGates, metrics                      string
	features                                   map[string]bool
	ignored                                    []string
	founders                                   []raftstore.InitialMember
}

// meaningless are etcd's flags for what the store does not have: a second
// backend, a v2 API, discovery, tracing. They are accepted, with a warning.
var meaningless = map[string]string{
	"backend-batch-interval": "duration", "backend-batch-limit": "int", "backend-bbolt-freelist-type": "string",
	"cors": "string", "host-whitelist": "string",
	"discovery-keepalive-time": "duration", "discovery-keepalive-timeout": "duration", "discovery-srv": "string", "discovery-srv-name": "string", "discovery-fallback": "string",
	"downgrade-check-time": "duration", "enable-distributed-tracing": "bool", "distributed-tracing-address": "string",
	"distributed-tracing-service-name": "string", "distributed-tracing-instance-id": "string", "distributed-tracing-sampling-rate": "int",
	"enable-log-rotation": "bool", "log-rotation-config-json": "string", "enable-pprof": "bool", "experimental-peer-skip-client-san-verification": "bool",
	"initial-election-tick-advance": "bool", "max-snapshots": "uint", "max-wals": "uint", "memory-mlock": "bool",
	"raft-read-timeout": "duration", "raft-write-timeout": "duration", "socket-reuse-address": "bool", "socket-reuse-port": "bool",
	"unsafe-no-fsync": "bool", "v2-deprecation": "string", "wal-dir": "string",
	"lease-checkpoint":          "bool",
	"self-signed-cert-validity": "uint",
}

// quiet are those of them that nobody who sets them loses anything by.
var quiet = []string{"enable-pprof", "initial-election-tick-advance", "log-rotation-config-json"}

// deprecated are what etcd says of flags that it will drop.
var deprecated = map[string]string{
	"max-snapshots":  "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8",
	"max-wals":       "--max-wals is deprecated in 3.6 and will be decommissioned in 3.8",
	"v2-deprecation": "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
}

// v2Deprecation is etcd's default of --v2-deprecation, which it enforces.
const v2Deprecation = "write-only"

const (
	defaultStoreQuota = 2 << 30
	noneLess          = "has no meaning here"
)

func (c *storeConfig) flags(fs *pflag.FlagSet) {
	const clients, peers = "http://localhost:2379", "http://localhost:2380"
	fs.BoolVar(&c.version, "version", false, "print the version of etcd's API and exit")
	fs.StringVar(&c.name, "name", "default", "`name` of this member, for people")
	fs.StringVar(&c.configFile, "config-file", "", "`file` of settings; other flags and the environment then count for nothing")
	fs.StringVar(&c.dataDir, "data-dir", "", "`folder` of the data (default <name>.etcd)")
	fs.StringSliceVar(&c.listenClient, "listen-client-urls", []string{clients}, "`URLs` to listen on for clients")
	fs.StringSliceVar(&c.advertiseClient, "advertise-client-urls", []string{clients}, "`URLs` of this member that clients are told")
	fs.StringSliceVar(&c.listenPeer, "listen-peer-urls", []string{peers}, "`URLs` to listen on for members")
	fs.StringSliceVar(&c.advertisePeer, "initial-advertise-peer-urls", []string{peers}, "`URLs` of this member that members are told")
	fs.StringSliceVar(&c.listenClientHTTP, "listen-client-http-urls", nil, "`URLs` to listen on for HTTP without gRPC")
	fs.StringSliceVar(&c.listenMetrics, "listen-metrics-urls", nil, "`URLs` to listen on for /metrics and /health")
	fs.StringVar(&c.initialCluster, "initial-cluster", "", "`name=URL,...` of the members at the first start (default this one)")
	fs.StringVar(&c.initialState, "initial-cluster-state", "new", "`new` or existing")
	fs.StringVar(&c.initialToken, "initial-cluster-token", "etcd-cluster", "`text` that keeps clusters apart")
	fs.UintVar(&c.heartbeatMillis, "heartbeat-interval", 100, "`ms` between heartbeats")
	fs.UintVar(&c.electionMillis, "election-timeout", 1000, "`ms` without a heartbeat before an election")
	fs.Int64Var(&c.quota, "quota-backend-bytes", 0, "`bytes` of state before writes are refused (0: 2 GB, negative: no bound)")
	fs.IntVar(&c.maxRequestBytes, "max-request-bytes", 3<<19, "`bytes` that a request may have")
	fs.IntVar(&c.maxTxnOps, "max-txn-ops", 128, "`operations` that a transaction may have")
	fs.IntVar(&c.maxLearners, "max-learners", 1, "`members` without a vote that there may be")
	fs.Uint64Var(&c.defragAbove, "bootstrap-defrag-threshold-megabytes", 0, "`MB` that a defragmentation at start must give back to be made (0: never)")
	fs.Uint64Var(&c.snapshotCount, "snapshot-count", 10000, "`entries` after which the applied state is written")
	fs.Uint64Var(&c.catchUp, "snapshot-catchup-entries", 5000, "`entries` kept for members that lag behind")
	fs.BoolVar(&c.strictReconfig, "strict-reconfig-check", true, "refuse changes of members that would lose the quorum")
	fs.BoolVar(&c.preVote, "pre-vote", true, "ask before an election whether it can be won; always on")
	fs.BoolVar(&c.forceNew, "force-new-cluster", false, "make this member alone the cluster")
	fs.BoolVar(&c.gateway, "enable-grpc-gateway", true, "serve the API as JSON below /v3/")
	fs.StringVar(&c.compactionMode, "auto-compaction-mode", "periodic", "`periodic` or revision")
	fs.StringVar(&c.compactionRetention, "auto-compaction-retention", "0", "history to keep: `hours, a duration or revisions`")
	fs.StringVar(&c.authToken, "auth-token", "simple", "`kind` of tokens: simple, or jwt with options")
	fs.UintVar(&c.authTokenTTL, "auth-token-ttl", 300, "`seconds` that a simple token lives")
	fs.IntVar(&c.bcryptCost, "bcrypt-cost", 10, "`cost` of hashing passwords")
	fs.DurationVar(&c.progressInterval, "watch-progress-notify-interval", 10*time.Minute, "`duration` between notes to quiet watches")
	fs.DurationVar(&c.keepaliveMinTime, "grpc-keepalive-min-time", 5*time.Second, "`duration` that clients must wait between pings")
	fs.DurationVar(&c.keepaliveInterval, "grpc-keepalive-interval", 2*time.Hour, "`duration` between pings of clients")
	fs.DurationVar(&c.keepaliveTimeout, "grpc-keepalive-timeout", 20*time.Second, "`duration` before a silent client is given up")
	fs.Uint32Var(&c.maxStreams, "max-concurrent-streams", 0, "`streams` that a client may have (0: no bound)")
	fs.DurationVar(&c.slowApply, "warning-apply-duration", 100*time.Millisecond, "`duration` of applying an entry beyond which the log tells of it")
	fs.DurationVar(&c.slowRequest, "warning-unary-request-duration", 300*time.Millisecond, "`duration` of a request beyond which the log tells of it")
	fs.DurationVar(&c.corruptCheck, "corrupt-check-time", 0, "`duration` between comparisons of what the members hold (0: never)")
	fs.DurationVar(&c.compactHashCheck, "compact-hash-check-time", time.Minute, "`duration` between comparisons of what was compacted, with the feature CompactHashCheck")
	fs.IntVar(&c.compactionBatch, "compaction-batch-limit", 0, "`revisions` that a step of a compaction looks at (0: 1000)")
	fs.DurationVar(&c.compactionSleep, "compaction-sleep-interval", 0, "`duration` between steps of a compaction (0: 10 ms)")
	fs.StringVar(&c.featureGates, "feature-gates", "", "`name=bool,...`; with effect: StopGRPCServiceOnDefrag, LeaseCheckpoint, InitialCorruptCheck, CompactHashCheck")
	fs.StringVar(&c.metrics, "metrics", "basic", "`basic`, or extensive: how long each gRPC method takes, too")
	fs.StringVar(&c.logger, "logger", "zap", "`zap`")
	fs.StringVar(&c.level, "log-level", "info", "debug, info, warn, error, panic or fatal")
	fs.StringVar(&c.logFormat, "log-format", "json", "`json`")
	fs.StringSliceVar(&c.logOutputs, "log-outputs", []string{"default"}, "`stderr, stdout or files`")
	c.client.flags(fs, "")
	c.peer.flags(fs, "peer-")
	c.discovery.flags(fs)
	for name, kind := range meaningless {
		switch kind {
		case "bool":
			fs.Bool(name, false, noneLess)
		case "int":
			fs.Int(name, 0, noneLess)
		case "uint", "uint64":
			fs.Uint64(name, 0, noneLess)
		case "duration":
			fs.Duration(name, 0, noneLess)
		default:
			fs.String(name, "", noneLess)
		}
		fs.Lookup(name).Hidden = true
	}
}

// parse reads flags, and from the environment those that args do not set.
func (c *storeConfig) parse(args, environ []string) (help string, err error) {
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	c.flags(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return "Usage: edged store [flags]\n\nRuns the store alone, in the place of an etcd. Flags are etcd's, as are the\nenvironment variables ETCD_NAME and so on.\n\n" + fs.FlagUsages(), nil
		}
		return "", misusef("%w; `edged store --help` lists the flags", err)
	}
	if fs.NArg() > 0 {
		return "", misusef("unexpected argument %q", fs.Arg(0))
	}
	if err := c.more(fs, environ); err != nil {
		return "", err
	}
	fs.Visit(func(f *pflag.Flag) {
		if meaningless[f.Name] != "" && !slices.Contains(quiet, f.Name) {
			c.ignored = append(c.ignored, f.Name)
		}
	})
	return "", c.validate(fs)
}

// more reads what flags do not say: the environment, or a file and nothing else.
func (c *storeConfig) more(fs *pflag.FlagSet, environ []string) error {
	if err := fromEnvironment(fs, environ); err != nil || c.configFile == "" {
		return err
	}
	file := c.configFile
	*c = storeConfig{}
	only := pflag.NewFlagSet("store", pflag.ContinueOnError)
	c.flags(only)
	if err := fromFile(only, file); err != nil {
		return err
	}
	*fs = *only
	return nil
}

func fromEnvironment(fs *pflag.FlagSet, environ []string) error {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		name, ours := strings.CutPrefix(name, "ETCD_")
		if !ours || value == "" {
			continue
		}
		f := fs.Lookup(strings.ReplaceAll(strings.ToLower(name), "_", "-"))
		if f == nil || f.Changed {
			continue
		}
		if err := fs.Set(f.Name, value); err != nil {
			return misusef("ETCD_%s: %w", name, err)
		}
	}
	return nil
}

func (c *storeConfig) validate(fs *pflag.FlagSet) error {
	if c.dataDir == "" {
		c.dataDir = c.name + ".etcd"
	}
	for flag, urls := range map[string][]string{
		"listen-client-urls": c.listenClient, "listen-peer-urls": c.listenPeer, "advertise-client-urls": c.advertiseClient,
		"initial-advertise-peer-urls": c.advertisePeer, "listen-client-http-urls": c.listenClientHTTP, "listen-metrics-urls": c.listenMetrics,
	} {
		for _, u := range urls {
			if err := checkURL(u); err != nil {
				return misusef("--%s: %w", flag, err)
			}
		}
	}
	if fs.Changed("listen-client-urls") && !fs.Changed("advertise-client-urls") {
		return misusef("--advertise-client-urls is required when --listen-client-urls is set explicitly")
	}
	switch {
	case c.initialState != "new" && c.initialState != "existing":
		return misusef("--initial-cluster-state: %q is neither new nor existing", c.initialState)
	case c.heartbeatMillis == 0:
		return misusef("--heartbeat-interval must be at least 1 ms")
	case c.electionMillis < 5*c.heartbeatMillis:
		return misusef("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", c.electionMillis, c.heartbeatMillis)
	case c.electionMillis > 50000:
		return misusef("--election-timeout[%vms] is too long, and should be set less than 50000ms", c.electionMillis)
	case c.logger != "zap":
		return misusef("--logger: %q: the only one is zap", c.logger)
	case c.compactionMode != "periodic" && c.compactionMode != "revision":
		return misusef("--auto-compaction-mode: %q is neither periodic nor revision", c.compactionMode)
	}
	if v := fs.Lookup("v2-deprecation").Value.String(); v != "" && !slices.Contains([]string{v2Deprecation, "write-only-drop-data", "gone"}, v) {
		return misusef("invalid value %q for flag -v2-deprecation: invalid value %q", v, v)
	}
	if _, _, err := c.parseRetention(); err != nil {
		return misusef("--auto-compaction-retention: %w", err)
	}
	if c.discovery.on() {
		if err := c.discovery.check(); err != nil {
			return misusef("%w", err)
		}
		if fs.Changed("initial-cluster") {
			return misusef("--initial-cluster and --discovery-endpoints: the founders are either named or found")
		}
		c.initialToken = c.discovery.token
	} else if err := c.parseCluster(); err != nil {
		return misusef("--initial-cluster: %w", err)
	}
	return c.parseFeatures()
}

// features are those that etcd has.
var features = []string{
	"StopGRPCServiceOnDefrag", "TxnModeWriteWithSharedBuffer", "InitialCorruptCheck", "CompactHashCheck", "LeaseCheckpoint",
	"LeaseCheckpointPersist", "SetMemberLocalAddr", "FastLeaseKeepAlive", "PriorityRequest", "AllAlpha", "AllBeta",
}

func (c *storeConfig) parseFeatures() error {
	c.features = map[string]bool{}
	for _, f := range strings.Split(c.featureGates, ",") {
		if f = strings.TrimSpace(f); f == "" {
			continue
		}
		name, on, found := strings.Cut(f, "=")
		if !found {
			return misusef("--feature-gates: missing bool value for %s", f)
		}
		v, err := strconv.ParseBool(on)
		if err != nil {
			return misusef("--feature-gates: %s: %w", f, err)
		}
		if !slices.Contains(features, name) {
			return misusef("--feature-gates: unrecognized feature gate: %s", name)
		}
		if name == "AllAlpha" || name == "AllBeta" {
			continue // of those, each is told by itself
		}
		c.features[name] = v
	}
	return nil
}

// parseCluster reads the founders. A name may come more than once: with another
// URL each time.
func (c *storeConfig) parseCluster() error {
	if c.initialCluster == "" {
		c.founders = []raftstore.InitialMember{{Name: c.name, PeerURLs: c.advertisePeer}}
		return nil
	}
	found := false
	for _, item := range strings.Split(c.initialCluster, ",") {
		name, u, ok := strings.Cut(item, "=")
		if !ok {
			return fmt.Errorf("%q is not name=URL", item)
		}
		if err := checkURL(u); err != nil {
			return err
		}
		found = found || name == c.name
		i := slices.IndexFunc(c.founders, func(m raftstore.InitialMember) bool { return m.Name == name })
		if i < 0 {
			c.founders = append(c.founders, raftstore.InitialMember{Name: name})
			i = len(c.founders) - 1
		}
		c.founders[i].PeerURLs = append(c.founders[i].PeerURLs, u)
	}
	if !found {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.name)
	}
	return nil
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "unix", "unixs":
		return nil
	case "http", "https":
	default:
		return fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return fmt.Errorf("URL address does not have the form \"host:port\": %s", s)
	}
	if u.Path != "" {
		return fmt.Errorf("URL must not contain a path: %s", s)
	}
	return nil
}

func (c *storeConfig) election() time.Duration {
	return time.Duration(c.electionMillis) * time.Millisecond
}

func (c *storeConfig) quotaBytes() int64 {
	switch {
	case c.quota == 0:
		return defaultStoreQuota
	case c.quota < 0:
		return 0
	}
	return c.quota
}

func (c *storeConfig) logLevel() slog.Level {
	switch c.level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error", "panic", "dpanic", "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// parseRetention is a number of revisions, or how long; a number alone is hours.
func (c *storeConfig) parseRetention() (revisions int64, d time.Duration, err error) {
	n, err := strconv.ParseInt(c.compactionRetention, 10, 64)
	if c.compactionMode == "revision" {
		return n, 0, err
	}
	if err == nil {
		return 0, time.Duration(n) * time.Hour, nil
	}
	d, err = time.ParseDuration(c.compactionRetention)
	return 0, d, err
}

const (
	// revisionCheck is how often the revision mode looks.
	revisionCheck = 5 * time.Minute
	// samples is how many times a retention period is looked at.
	samples = 10
)

// retention is how often to compact, and the revision to compact to when the
// newest is rev; nil for not at all.
func (c *storeConfig) retention() (keep func(rev int64) int64, every time.Duration) {
	revisions, d, err := c.parseRetention()
	switch {
	case err != nil || revisions <= 0 && d <= 0:
		return nil, 0
	case revisions > 0:
		return func(rev int64) int64 { return rev - revisions }, revisionCheck
	}
	every = max(min(d, time.Hour)/samples, time.Millisecond)
	past := make([]int64, 0, int(d/every)+1)
	return func(rev int64) int64 {
		past = append(past, rev)
		if time.Duration(len(past)-1)*every < d {
			return 0
		}
		at := past[0]
		past = past[:copy(past, past[1:])]
		return at
	}, every
}
