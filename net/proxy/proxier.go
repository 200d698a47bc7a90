package proxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"edged/net/nft"
)

// Conntrack deletes the kernel's memory of connections that must be led
// elsewhere; net/bridge has one. Only UDP needs it: a TCP client notices by
// itself that its endpoint is gone.
type Conntrack interface {
	// ForgetUDP deletes every UDP entry for which stale says yes, given the
	// destination as the client sees it and who answers.
	ForgetUDP(stale func(dst, backend netip.AddrPort) bool) error
}

// Config is what a Proxier needs.
type Config struct {
	Network
	Table     *nft.Table
	Conntrack Conntrack // nil: UDP clients wait for the kernel's timeout
	Logger    *slog.Logger
}

// Proxier keeps the rules of this device.
type Proxier struct {
	// Set by New.
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // holds one

	mu         sync.Mutex // guards the following, and serializes transactions
	translator *translator
	udp        udpView // as of the last transaction
	checks     *healthChecks

	hostMu    sync.Mutex // guards the following
	hostPorts []HostPort
	redirects []HostPort
}

// New prepares a proxier; nothing is applied yet.
func New(cfg Config) (*Proxier, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxier{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1)}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.cfg.Balance == nil {
		p.cfg.Balance = func(_ bool, n uint32) nft.Value { return nft.Random(n) }
		if err := nft.Probe(nft.FeatureNumgen); err != nil {
			p.log.Info("balancing by a hash of the client's address and port, because this kernel cannot draw numbers", "err", err)
			p.cfg.Balance = nft.FlowHash
		}
	}
	p.translator = newTranslator(&p.cfg.Network)
	p.checks = newHealthChecks(p.log)
	return p, nil
}

// Apply makes the kernel serve s and nothing else, in one transaction with the
// differences. On error the kernel serves what it served before.
func (p *Proxier) Apply(s State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	rules, parts := p.translator.translate(s)
	if err := p.cfg.Table.Apply(section, rules); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	var asked []health
	for _, part := range parts {
		if h := part.svc.health; h != nil {
			asked = append(asked, *h)
		}
	}
	p.checks.sync(asked)
	if p.cfg.Conntrack == nil {
		return nil
	}
	now := viewUDP(parts, p.udp)
	old := p.udp
	p.udp = now
	if now.same(old) {
		return nil
	}
	if err := p.cfg.Conntrack.ForgetUDP(func(dst, backend netip.AddrPort) bool { return stale(old, now, dst, backend) }); err != nil {
		// The rules are right; clients of old endpoints recover when the
		// kernel forgets by itself.
		p.log.Warn("UDP connection tracks of old endpoints not deleted", "err", err)
	}
	return nil
}

// Close stops answering health checks. The rules stay.
func (p *Proxier) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks.close()
	return nil
}

// Intact says whether the kernel still has the rules; if not, Apply mends it.
func (p *Proxier) Intact() (bool, error) { return p.cfg.Table.Intact(section) }
