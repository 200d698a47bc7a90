package cniplugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"edged/net/bridge"
	"edged/net/nft"
)

// Called says whether a process was started as the plugin: under its name, or
// without arguments in a plugin's environment.
func Called(args []string, getenv func(string) string) bool {
	if len(args) == 0 {
		return false
	}
	return filepath.Base(args[0]) == Name || len(args) == 1 && getenv("CNI_COMMAND") != ""
}

// Main carries out one call and returns the exit code. Results and errors go to
// stdout, as the specification has it.
func Main(ctx context.Context, getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	version := currentVersion
	out, err := run(ctx, getenv, stdin, &version)
	if err == nil {
		if out != nil {
			err = json.NewEncoder(stdout).Encode(out)
		}
		if err == nil {
			return 0
		}
	}
	e, ok := errors.AsType[*cniError](err)
	if !ok {
		e = &cniError{codeFailed, "failed", err}
	}
	// Nobody is left to tell if this fails.
	_ = json.NewEncoder(stdout).Encode(map[string]any{"cniVersion": version, "code": e.code, "msg": e.msg, "details": e.err.Error()})
	return 1
}

// maxConfigBytes bounds what is read: a configuration with every container of
// a device in it (GC) is some 100 KB.
const maxConfigBytes = 16 << 20

func run(ctx context.Context, getenv func(string) string, stdin io.Reader, version *string) (any, error) {
	command := getenv("CNI_COMMAND")
	data, err := io.ReadAll(io.LimitReader(stdin, maxConfigBytes))
	if err != nil {
		return nil, &cniError{5, "failed to read the network configuration", err}
	}
	if command == "VERSION" {
		return map[string]any{"cniVersion": currentVersion, "supportedVersions": supportedVersions}, nil
	}
	c, err := parse(data)
	if c != nil && c.CNIVersion != "" {
		*version = c.CNIVersion
	}
	if err != nil {
		return nil, err
	}
	at := attachment{getenv("CNI_CONTAINERID"), getenv("CNI_IFNAME")}
	p := plugin{c: c, at: at, netns: getenv("CNI_NETNS")}
	do := map[string]func(context.Context, *bridge.Bridge) (any, error){
		"ADD": p.add, "DEL": p.del, "CHECK": p.check, "STATUS": p.status, "GC": p.gc,
	}[command]
	if do == nil {
		return nil, failf(codeEnvironment, "invalid environment", "CNI_COMMAND %q is not ADD, DEL, CHECK, STATUS, GC or VERSION", command)
	}
	if err := p.checkEnv(command); err != nil {
		return nil, err
	}
	return p.locked(ctx, command, do)
}

// plugin is one call.
type plugin struct {
	c     *config
	at    attachment
	netns string
}

// since says from which version on a command exists.
var since = map[string]string{"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}

func (p *plugin) checkEnv(command string) error {
	if s := since[command]; s != "" && slices.Index(supportedVersions, p.c.CNIVersion) < slices.Index(supportedVersions, s) {
		return failf(codeVersion, "incompatible CNI version", "%s does not exist in %s", command, p.c.CNIVersion)
	}
	switch command {
	case "ADD", "DEL", "CHECK":
		if p.at.ContainerID == "" || p.at.IfName == "" || len(p.at.IfName) >= unix.IFNAMSIZ {
			return failf(codeEnvironment, "invalid environment", "CNI_CONTAINERID %q and CNI_IFNAME %q do not name an attachment", p.at.ContainerID, p.at.IfName)
		}
		if p.netns == "" && command != "DEL" {
			return failf(codeEnvironment, "invalid environment", "CNI_NETNS is missing")
		}
	}
	return nil
}

// locked opens the bridge for one command; other calls wait.
func (p *plugin) locked(ctx context.Context, command string, do func(context.Context, *bridge.Bridge) (any, error)) (any, error) {
	unavailable := func(err error) error {
		if command == "STATUS" {
			return &cniError{codeNotAvailable, "the plugin is not available", err}
		}
		return err
	}
	if err := os.MkdirAll(p.c.StateDir, 0o700); err != nil {
		return nil, unavailable(err)
	}
	lock, err := os.OpenFile(filepath.Join(p.c.StateDir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, unavailable(err)
	}
	defer lock.Close() // and with it the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, unavailable(fmt.Errorf("locking %s: %w", lock.Name(), err))
	}
	br, err := bridge.New(bridge.Config{Name: p.c.Bridge, PodCIDRs: p.c.PodCIDRs, ServiceCIDRs: p.c.ServiceCIDRs, MTU: p.c.MTU, StateDir: p.c.StateDir})
	if err != nil {
		return nil, unavailable(err)
	}
	defer br.Close()
	return do(ctx, br)
}

func (p *plugin) add(ctx context.Context, br *bridge.Bridge) (any, error) {
	if err := p.masquerade(); err != nil {
		return nil, err
	}
	att, err := br.Attach(ctx, bridge.AttachRequest{ID: p.at.id(), NetNS: p.netns, IfName: p.at.IfName})
	if err != nil {
		return nil, err
	}
	r := &result{CNIVersion: p.c.CNIVersion, Interfaces: []resultLink{
		{Name: p.c.Bridge}, {Name: att.HostLink}, {Name: p.at.IfName, MAC: att.MAC.String(), Sandbox: p.netns}}}
	if p.c.CNIVersion == currentVersion {
		for i := range r.Interfaces {
			r.Interfaces[i].MTU = att.MTU
		}
	}
	for i, a := range att.IPs {
		ip := resultIP{Address: netip.PrefixFrom(a, a.BitLen()), Gateway: att.Gateways[i], Interface: len(r.Interfaces) - 1}
		all, version := netip.PrefixFrom(netip.IPv4Unspecified(), 0), "4"
		if a.Is6() {
			all, version = netip.PrefixFrom(netip.IPv6Unspecified(), 0), "6"
		}
		if p.c.CNIVersion[0] == '0' {
			ip.Version = version
		}
		r.IPs = append(r.IPs, ip)
		r.Routes = append(r.Routes, resultRoute{all, att.Gateways[i]})
	}
	return r, nil
}

func (p *plugin) del(ctx context.Context, br *bridge.Bridge) (any, error) {
	return nil, br.Detach(ctx, p.at.id())
}

func (p *plugin) check(ctx context.Context, br *bridge.Bridge) (any, error) {
	if p.c.PrevResult == nil {
		return nil, failf(codeConfig, "invalid network configuration", "CHECK without prevResult")
	}
	have, err := br.Check(ctx, bridge.AttachRequest{ID: p.at.id(), NetNS: p.netns, IfName: p.at.IfName})
	if err != nil {
		return nil, err
	}
	for _, ip := range p.c.PrevResult.IPs {
		i := ip.Interface
		mine := i >= 0 && i < len(p.c.PrevResult.Interfaces) && p.c.PrevResult.Interfaces[i].Name == p.at.IfName
		if mine && !slices.Contains(have, ip.Address.Addr()) {
			return nil, fmt.Errorf("the attachment has the addresses %v and not %s", have, ip.Address.Addr())
		}
	}
	return nil, nil
}

// status has opened the bridge by now: what is left is the packet filter.
func (p *plugin) status(context.Context, *bridge.Bridge) (any, error) {
	if !p.wantsMasquerade() {
		return nil, nil
	}
	if err := nft.Probe(nft.FeatureMasquerade); err != nil {
		return nil, &cniError{codeNotAvailable, "the plugin is not available", err}
	}
	return nil, nil
}

func (p *plugin) gc(ctx context.Context, br *bridge.Bridge) (any, error) {
	var keep []string
	for _, a := range slices.Concat(p.c.Valid, p.c.Valid2) {
		keep = append(keep, a.id())
	}
	return nil, br.Sync(ctx, keep)
}

func (p *plugin) wantsMasquerade() bool { return p.c.Masquerade == nil || *p.c.Masquerade }

// masquerade makes the rules by which containers reach the outside, or none.
// They do not depend on any container.
func (p *plugin) masquerade() error {
	table, daemons := nft.OpenNamed(tableName), nft.Open()
	defer table.Close()
	defer daemons.Close()
	sum := sha256.Sum256([]byte(p.c.Bridge))
	section := "cni" + hex.EncodeToString(sum[:4])
	// Where versions before had it.
	if err := daemons.Drop(section); err != nil {
		return err
	}
	rules := &nft.Ruleset{}
	if p.wantsMasquerade() {
		chain := nft.Chain{Name: section + "-postrouting", Base: &nft.Base{Type: "nat", Hook: "postrouting", Priority: nft.PrioritySrcNAT}}
		for _, own := range p.c.PodCIDRs {
			is6 := own.Addr().Is6()
			rule := nft.Rule{nft.InPrefix(nft.SrcAddr(is6), own)}
			for _, in := range slices.Concat(p.c.ClusterCIDRs, p.c.ServiceCIDRs) {
				if in.Addr().Is6() == is6 {
					rule = append(rule, nft.NotInPrefix(nft.DstAddr(is6), in))
				}
			}
			chain.Rules = append(chain.Rules, append(rule, nft.NotEqual(nft.OutLink(), nft.LinkConst(p.c.Bridge)), nft.Masquerade()))
		}
		rules.Chains = append(rules.Chains, chain)
	}
	return table.Apply(section, rules)
}
