package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"edged/raftstore/consensus"

	"edged/raftstore"
)

// discoveryConfig is how founders find each other through another etcd, etcd's
// discovery of version 3: below a token there is how many they are to be, and
// each adds itself. Who comes when they are complete is refused.
type discoveryConfig struct {
	token                    string
	endpoints                []string
	dialTimeout, callTimeout time.Duration
	insecure, skipVerify     bool
	cert, key, ca            string
	user, password           string
}

func (d *discoveryConfig) flags(fs *pflag.FlagSet) {
	fs.StringVar(&d.token, "discovery-token", "", "`text` below which the founders of this cluster find each other")
	fs.StringSliceVar(&d.endpoints, "discovery-endpoints", nil, "`URLs` of the etcd through which they do")
	fs.DurationVar(&d.dialTimeout, "discovery-dial-timeout", 2*time.Second, "`duration` to wait for a connection to it")
	fs.DurationVar(&d.callTimeout, "discovery-request-timeout", 5*time.Second, "`duration` to wait for its answers")
	fs.BoolVar(&d.insecure, "discovery-insecure-transport", true, "speak plain text with it if its URLs do not say https")
	fs.BoolVar(&d.skipVerify, "discovery-insecure-skip-tls-verify", false, "do not check its certificate")
	fs.StringVar(&d.cert, "discovery-cert", "", "`file` of the certificate to show it")
	fs.StringVar(&d.key, "discovery-key", "", "`file` of its key")
	fs.StringVar(&d.ca, "discovery-cacert", "", "`file` of the CAs that its certificate is checked with")
	fs.StringVar(&d.user, "discovery-user", "", "`name[:password]` of a user there")
	fs.StringVar(&d.password, "discovery-password", "", "`password` of that user")
}

func (d *discoveryConfig) on() bool { return d.token != "" || len(d.endpoints) > 0 }

// check refuses what discovery cannot work with.
func (d *discoveryConfig) check() error {
	switch {
	case d.token == "":
		return errors.New("--discovery-endpoints needs --discovery-token")
	case len(d.endpoints) == 0:
		return errors.New("--discovery-token needs --discovery-endpoints")
	case (d.cert == "") != (d.key == ""):
		return errors.New("--discovery-cert and --discovery-key come together")
	}
	return nil
}

// errFull refuses who comes when the founders are complete.
var errFull = errors.New("discovery: cluster is full")

// finder is one member's part.
type finder struct {
	*discoveryConfig
	log      *slog.Logger
	self     string // member id
	entry    string // name=URL,...
	kv       pb.KVClient
	watch    pb.WatchClient
	prefix   string
	authored context.Context // with the user's token
}

// discover registers this member and waits until all founders have, and returns
// them.
func (c *storeConfig) discover(ctx context.Context, log *slog.Logger) ([]raftstore.InitialMember, error) {
	items := make([]string, len(c.advertisePeer))
	for i, u := range c.advertisePeer {
		items[i] = c.name + "=" + u
	}
	d := &finder{
		discoveryConfig: &c.discovery, log: log, prefix: "/_etcd/registry/" + c.discovery.token,
		self: strconv.FormatUint(consensus.MemberID(c.advertisePeer, c.discovery.token, 0), 16), entry: strings.Join(items, ","),
	}
	last := errors.New("no endpoint is named")
	// Another endpoint, or the same one later, may answer.
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		for _, e := range d.endpoints {
			found, err := d.through(ctx, e)
			if err == nil {
				return found, nil
			}
			if ctx.Err() != nil {
				return nil, errors.Join(ctx.Err(), last)
			}
			if errors.Is(err, errFull) || errors.Is(err, errDiscoveryMisuse) {
				return nil, err
			}
			last = fmt.Errorf("discovery through %s: %w", e, err)
			log.Warn("the founders were not found; trying again", "error", last.Error())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), last)
		case <-time.After(wait):
		}
	}
}

// errDiscoveryMisuse is of what trying again does not mend.
var errDiscoveryMisuse = errors.New("discovery")

func (d *finder) through(ctx context.Context, endpoint string) ([]raftstore.InitialMember, error) {
	creds, err := d.credentials(endpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDiscoveryMisuse, err)
	}
	target := endpoint
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		target = u.Host
	}
	conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, d.dialTimeout)
			defer cancel()
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	d.kv, d.watch, d.authored = pb.NewKVClient(conn), pb.NewWatchClient(conn), ctx
	if d.user != "" {
		if err := d.authenticate(ctx, pb.NewAuthClient(conn)); err != nil {
			return nil, err
		}
	}
	return d.join()
}

func (d *finder) credentials(endpoint string) (credentials.TransportCredentials, error) {
	secure := strings.HasPrefix(endpoint, "https://") || !d.insecure || d.cert != "" || d.ca != ""
	if !secure || strings.HasPrefix(endpoint, "http://") {
		return insecure.NewCredentials(), nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: d.skipVerify}
	if d.ca != "" {
		pool, err := readPool(d.ca)
		if err != nil {
			return nil, fmt.Errorf("--discovery-cacert: %w", err)
		}
		conf.RootCAs = pool
	}
	if d.cert != "" {
		c, err := tls.LoadX509KeyPair(d.cert, d.key)
		if err != nil {
			return nil, fmt.Errorf("--discovery-cert: %w", err)
		}
		conf.Certificates = []tls.Certificate{c}
	}
	return credentials.NewTLS(conf), nil
}

func (d *finder) authenticate(ctx context.Context, auth pb.AuthClient) error {
	name, password, found := strings.Cut(d.user, ":")
	if !found {
		password = d.password
	}
	ctx, cancel := context.WithTimeout(ctx, d.callTimeout)
	defer cancel()
	resp, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: password})
	if err != nil {
		return fmt.Errorf("--discovery-user: %w", err)
	}
	d.authored = metadata.AppendToOutgoingContext(d.authored, rpctypes.TokenFieldNameGRPC, resp.Token)
	return nil
}

// join is the protocol: look, register, look again, wait.
func (d *finder) join() ([]raftstore.InitialMember, error) {
	size, err := d.size()
	if err != nil {
		return nil, err
	}
	founders, rev, err := d.registered()
	if err != nil {
		return nil, err
	}
	if !d.among(founders, len(founders)) {
		if len(founders) >= size {
			return nil, errFull
		}
		if err := d.register(); err != nil {
			return nil, err
		}
		if founders, rev, err = d.registered(); err != nil {
			return nil, err
		}
	}
	if !d.among(founders, size) {
		return nil, errFull // others were first
	}
	d.log.Info("found the founders that have come so far", "found", len(founders), "size", size)
	if len(founders) < size {
		if founders, err = d.wait(rev+1, size); err != nil {
			return nil, err
		}
	}
	return d.decode(founders[:size])
}

func (d *finder) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(d.authored, d.callTimeout)
}

func (d *finder) size() (int, error) {
	ctx, cancel := d.call()
	defer cancel()
	key := d.prefix + "/_config/size"
	resp, err := d.kv.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return 0, err
	}
	if len(resp.Kvs) == 0 {
		return 0, fmt.Errorf("size key not found: put the number of founders to %s", key)
	}
	n, err := strconv.Atoi(string(resp.Kvs[0].Value))
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%w: %s is %q, not a number of founders", errDiscoveryMisuse, key, resp.Kvs[0].Value)
	}
	return n, nil
}

func (d *finder) members() string { return d.prefix + "/members" }

// registered returns the founders in the order in which they came.
func (d *finder) registered() ([]*mvccpb.KeyValue, int64, error) {
	ctx, cancel := d.call()
	defer cancel()
	resp, err := d.kv.Range(ctx, &pb.RangeRequest{Key: []byte(d.members() + "/"), RangeEnd: []byte(d.members() + "0")})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	return resp.Kvs, resp.Header.Revision, nil
}

// among reports whether this member is one of the first n.
func (d *finder) among(founders []*mvccpb.KeyValue, n int) bool {
	return slices.ContainsFunc(founders[:min(n, len(founders))], func(kv *mvccpb.KeyValue) bool {
		return string(kv.Key) == d.members()+"/"+d.self
	})
}

func (d *finder) register() error {
	ctx, cancel := d.call()
	defer cancel()
	_, err := d.kv.Put(ctx, &pb.PutRequest{Key: []byte(d.members() + "/" + d.self), Value: []byte(d.entry)})
	return err
}

// wait watches until there are as many founders as there are to be.
func (d *finder) wait(from int64, size int) ([]*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithCancel(d.authored)
	defer cancel()
	stream, err := d.watch.Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(d.members() + "/"), RangeEnd: []byte(d.members() + "0"), StartRevision: from,
	}}}); err != nil {
		return nil, err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if resp.Canceled {
			return nil, fmt.Errorf("the watch was ended: %s", resp.CancelReason)
		}
		if len(resp.Events) == 0 {
			continue
		}
		founders, _, err := d.registered()
		if err != nil {
			return nil, err
		}
		d.log.Info("found the founders that have come so far", "found", len(founders), "size", size)
		if len(founders) >= size {
			return founders, nil
		}
	}
}

func (d *finder) decode(kvs []*mvccpb.KeyValue) ([]raftstore.InitialMember, error) {
	var found storeConfig
	entries := make([]string, len(kvs))
	for i, kv := range kvs {
		entries[i] = string(kv.Value)
		if string(kv.Key) == d.members()+"/"+d.self {
			found.name, _, _ = strings.Cut(entries[i], "=")
		}
	}
	found.initialCluster = strings.Join(entries, ",")
	if err := found.parseCluster(); err != nil {
		return nil, fmt.Errorf("%w: the founders registered %q: %w", errDiscoveryMisuse, found.initialCluster, err)
	}
	return found.founders, nil
}

// needsDiscovery reports whether there is no member in the data-dir yet.
func (c *storeConfig) needsDiscovery(memberDir string) bool {
	if !c.discovery.on() {
		return false
	}
	_, err := os.Stat(memberDir + "/wal")
	return errors.Is(err, os.ErrNotExist)
}
