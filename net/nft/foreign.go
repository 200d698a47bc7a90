package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// foreignComment marks rules of ours in other programs' chains.
const foreignComment = "edged: packets of Pods"

// Foreign is a chain of another program that drops what it does not know.
type Foreign struct {
	Family, Table, Chain string
	Err                  error // why it does not let Pods through; nil if it does now
}

// Admit lets packets of Pods, which pass by the link, through the chains of
// other programs that end in dropping what they do not know: docker, ufw and
// firewalld keep such chains for what a device forwards, and the latter two for
// what it receives. In nftables, a packet must be accepted by every chain of a
// hook, so that it takes a rule in each. Admit is to be repeated: those programs
// rebuild their chains. It returns the chains that it changed or could not.
//
// Packets that pass the device alone, from another machine to a Pod of another device
// because of a Service, are told by the Pod's address, which is in pods: their links
// may be the same.
//
// Admit drops nothing and overrides no rule of ours: net/policy's verdicts stand.
func Admit(link string, pods []netip.Prefix) ([]Foreign, error) {
	conn, err := dial()
	if err != nil {
		return nil, fmt.Errorf("foreign packet filters: %w", err)
	}
	defer conn.CloseLasting()
	var out []Foreign
	err = eachForeign(conn, func(c *nftables.Chain, rules []*nftables.Rule) {
		want := passes(c, link, pods)
		ours := slices.DeleteFunc(slices.Clone(rules), func(r *nftables.Rule) bool { return !isOurs(r) })
		if len(ours) == len(want) || !dropsUnknown(c, rules) {
			return
		}
		err := admit(conn, c, want, ours)
		out = append(out, Foreign{familyName(c.Table.Family), c.Table.Name, c.Name, err})
	})
	return out, err
}

// passes are the rules that let packets of Pods pass a chain.
func passes(c *nftables.Chain, link string, pods []netip.Prefix) []Stmt {
	out := []Stmt{Equal(InLink(), LinkConst(link))}
	if *c.Hooknum != *nftables.ChainHookForward {
		return out
	}
	out = append(out, Equal(OutLink(), LinkConst(link)))
	for _, p := range pods {
		is6 := p.Addr().Is6()
		if c.Table.Family == nftables.TableFamilyINet || is6 == (c.Table.Family == nftables.TableFamilyIPv6) {
			out = append(out, InPrefix(SrcAddr(is6), p), InPrefix(DstAddr(is6), p))
		}
	}
	return out
}

// admit puts rules into a chain, in the place of those that an older edged put there.
func admit(conn *nftables.Conn, c *nftables.Chain, want []Stmt, old []*nftables.Rule) error {
	for _, r := range old {
		r.Table, r.Chain = c.Table, c
		if err := conn.DelRule(r); err != nil {
			return err
		}
	}
	family := byte(0)
	if c.Table.Family != nftables.TableFamilyINet {
		family = byte(c.Table.Family) // iptables-nft refuses a table that asks for it
	}
	for _, m := range want {
		exprs, err := compileIn(family, Rule{m})
		if err != nil {
			return err
		}
		// A counter and a plain verdict: iptables-nft shows the rule as its
		// own `-i link -j ACCEPT` then, and does not refuse the table.
		exprs = append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
		conn.InsertRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, foreignComment)})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("transaction refused: %w", err)
	}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if !slices.ContainsFunc(rules, isOurs) {
		return ErrNotApplied
	}
	return nil
}

// Withdraw removes what Admit put into other programs' chains.
func Withdraw() error {
	conn, err := dial()
	if err != nil {
		return fmt.Errorf("foreign packet filters: %w", err)
	}
	defer conn.CloseLasting()
	var errs []error
	err = eachForeign(conn, func(c *nftables.Chain, rules []*nftables.Rule) {
		found := false
		for _, r := range rules {
			if isOurs(r) {
				found = true
				r.Table, r.Chain = c.Table, c
				errs = append(errs, conn.DelRule(r))
			}
		}
		if !found {
			return
		}
		if err := conn.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("foreign chain %s %s %s: %w", familyName(c.Table.Family), c.Table.Name, c.Name, err))
		}
	})
	return errors.Join(append(errs, err)...)
}

// eachForeign visits other programs' filters of forwarded and received packets.
func eachForeign(conn *nftables.Conn, visit func(*nftables.Chain, []*nftables.Rule)) error {
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == TableName || c.Type != nftables.ChainTypeFilter || c.Hooknum == nil || familyName(c.Table.Family) == "" ||
			*c.Hooknum != *nftables.ChainHookForward && *c.Hooknum != *nftables.ChainHookInput {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if missing(err) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("listing rules of %s %s: %w", c.Table.Name, c.Name, err)
		}
		visit(c, rules)
	}
	return nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return "" // packets of Pods are not filtered there, or by others' leave
}

func isOurs(r *nftables.Rule) bool {
	comment, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && comment == foreignComment
}

// dropsUnknown says whether a packet that no rule knows is lost: by the chain's
// policy, or by a last rule that says so.
func dropsUnknown(c *nftables.Chain, rules []*nftables.Rule) bool {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true
	}
	if len(rules) == 0 {
		return false
	}
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Reject:
			return true
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop
		case *expr.Cmp, *expr.Lookup, *expr.Match, *expr.Range:
			return false // the rule is about certain packets
		}
	}
	return false
}
