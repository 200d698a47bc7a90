package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"edged/internal/atomicfile"
	"edged/internal/netns"
)

// callTime bounds one call of a chain.
const callTime = time.Minute

// Config says where things are.
type Config struct {
	// ConfDir holds the configuration, BinDirs the plugins' programs.
	ConfDir string
	BinDirs []string
	// StateDir keeps what is attached; a reboot must empty it.
	StateDir string
	Logger   *slog.Logger
}

// Network connects Pods. See the package comment.
type Network struct {
	cfg     Config
	plugins *libcni.CNIConfig

	mu sync.Mutex
	// guarded by mu
	attached map[string][]netip.Addr
}

// binDirsFile lets [Cleanup] find the plugins.
const binDirsFile = "bin-dirs"

// New returns the network that cfg describes. There need be no configuration yet.
func New(cfg Config) (*Network, error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of CNI results: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(cfg.StateDir, binDirsFile), []byte(strings.Join(cfg.BinDirs, "\n")), 0o600); err != nil {
		return nil, err
	}
	return open(cfg), nil
}

// Cleanup disconnects what the network in stateDir has connected.
func Cleanup(ctx context.Context, stateDir string) error {
	dirs, err := os.ReadFile(filepath.Join(stateDir, binDirsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("what CNI plugins have connected: %w", err)
	}
	n := open(Config{StateDir: stateDir, BinDirs: strings.Split(string(dirs), "\n"), Logger: slog.New(slog.DiscardHandler)})
	return errors.Join(n.Sync(ctx, nil), os.RemoveAll(stateDir))
}

func open(cfg Config) *Network {
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: lines{cfg.Logger}}, PluginDecoder: version.PluginDecoder{}}
	return &Network{
		cfg: cfg, plugins: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.StateDir, exec), attached: map[string][]netip.Addr{},
	}
}

// lines logs what plugins say on their standard error.
type lines struct{ log *slog.Logger }

func (l lines) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		l.log.Debug("a CNI plugin says", "line", string(bytes.TrimSpace(line)))
	}
	return len(p), nil
}

// load reads the configuration.
func (n *Network) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.cfg.ConfDir, []string{".conflist", ".conf"})
	if err != nil {
		return nil, fmt.Errorf("--cni-conf-dir: %w", err)
	}
	slices.Sort(files)
	var errs []error
	for _, file := range files {
		list, err := read(file)
		if err == nil {
			return list, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", file, err))
	}
	return nil, errors.Join(append(errs, fmt.Errorf("there is no CNI configuration in %s", n.cfg.ConfDir))...)
}

func read(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	//lint:ignore SA1019 a file of one plugin is what some plugins still install, and other runtimes read
	conf, err := libcni.ConfFromFile(file)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the same
	return libcni.ConfListFromConf(conf)
}

// Ready says why no Pod can be attached: there is no configuration, or a plugin of
// CNI 1.1 says in its STATUS that it is not available.
func (n *Network) Ready(ctx context.Context) error {
	list, err := n.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := n.plugins.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("CNI network %s: %w", list.Name, err)
	}
	return nil
}

// Request is a Pod to attach.
type Request struct {
	ID              string // the Pod's UID
	Namespace, Name string
	NetNS           string // path of the Pod's network namespace
}

const ifName = "eth0"

func (r Request) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: r.ID, NetNS: r.NetNS, IfName: ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", r.Namespace}, {"K8S_POD_NAME", r.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", r.ID}, {"K8S_POD_UID", r.ID},
		},
	}
}

// Attach connects a Pod, if it is not, and returns its addresses.
func (n *Network) Attach(ctx context.Context, req Request) ([]netip.Addr, error) {
	n.mu.Lock()
	addrs, done := n.attached[req.ID]
	n.mu.Unlock()
	if done {
		return addrs, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := netns.Do(req.NetNS, loopbackUp); err != nil {
		return nil, fmt.Errorf("bring up the Pod's loopback: %w", err)
	}
	addrs, err := n.known(ctx, req)
	if err != nil {
		return nil, err
	}
	if addrs == nil {
		if addrs, err = n.add(ctx, req); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached[req.ID] = addrs
	return addrs, nil
}

// known are the addresses of a Pod that a daemon before this one has attached and
// that is still as it was; nil if it has to be added.
func (n *Network) known(ctx context.Context, req Request) ([]netip.Addr, error) {
	all, err := n.plugins.GetCachedAttachments(req.ID)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(all[0].Config)
	if err != nil {
		return nil, fmt.Errorf("what the Pod was attached with: %w", err)
	}
	rt := runtimeOf(all[0])
	if all[0].NetNS == req.NetNS {
		result, err := n.plugins.GetNetworkListCachedResult(list, rt)
		if err == nil && result != nil {
			if err = n.plugins.CheckNetworkList(ctx, list, rt); err == nil || tooOld(list) {
				return addressesOf(result)
			}
		}
		n.cfg.Logger.Info("a Pod's network is not what the CNI plugins have made: it is made anew", "pod", req.Namespace+"/"+req.Name, "err", err)
	}
	return nil, n.delete(ctx, all)
}

// tooOld says that the configuration's version knows no CHECK.
func tooOld(list *libcni.NetworkConfigList) bool {
	can, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0")
	return err != nil || !can
}

func (n *Network) add(ctx context.Context, req Request) ([]netip.Addr, error) {
	list, err := n.load()
	if err != nil {
		return nil, err
	}
	rt := req.runtime()
	result, err := n.plugins.AddNetworkList(ctx, list, rt)
	var addrs []netip.Addr
	if err == nil {
		addrs, err = addressesOf(result)
	}
	if err != nil {
		// The plugins of the chain that succeeded must hear of it (SPEC, ADD).
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		defer cancel()
		return nil, fmt.Errorf("CNI network %s: %w", list.Name, errors.Join(err, n.plugins.DelNetworkList(undo, list, rt)))
	}
	return addrs, nil
}

// addressesOf are the addresses of the Pod's own link.
func addressesOf(result types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("what the plugins answered: %w", err)
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) {
			if l := r.Interfaces[*i]; l.Sandbox == "" || l.Name != ifName {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the plugins gave the Pod no address")
	}
	return out, nil
}

func runtimeOf(a *libcni.NetworkAttachment) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs}
}

// delete ends attachments with the configuration that they were made with.
func (n *Network) delete(ctx context.Context, all []*libcni.NetworkAttachment) error {
	var errs []error
	for _, a := range all {
		list, err := libcni.NetworkConfFromBytes(a.Config)
		if err == nil {
			err = n.plugins.DelNetworkList(ctx, list, runtimeOf(a))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("CNI network %s: %w", a.Network, err))
		}
	}
	return errors.Join(errs...)
}

// Detach disconnects a Pod; one that is not connected is.
func (n *Network) Detach(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	all, err := n.plugins.GetCachedAttachments(id)
	if err != nil {
		return err
	}
	if err := n.delete(ctx, all); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	return nil
}

// Attached are the addresses of the Pods that this daemon has attached or found.
func (n *Network) Attached() map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.attached)
}

// Sync disconnects every Pod that is not in keep, and has plugins that can forget
// what they hold for others: a power cut ends Pods without DEL.
func (n *Network) Sync(ctx context.Context, keep []string) error {
	all, err := n.plugins.GetCachedAttachments("")
	if err != nil {
		return err
	}
	var errs []error
	var valid []types.GCAttachment
	for _, a := range all {
		if slices.Contains(keep, a.ContainerID) {
			valid = append(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
			continue
		}
		errs = append(errs, n.Detach(ctx, a.ContainerID))
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if n.cfg.ConfDir == "" {
		return errors.Join(errs...)
	}
	if list, err := n.load(); err == nil {
		if err := n.plugins.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			// Addresses are not given back; Pods can run.
			n.cfg.Logger.Warn("CNI plugins did not forget Pods that are gone", "network", list.Name, "err", strings.TrimSpace(err.Error()))
		}
	}
	return errors.Join(errs...)
}

// loopbackUp runs in the Pod's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
