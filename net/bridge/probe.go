package bridge

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probeName is a link that is made and removed again.
const probeName = "edged-probe"

// ProbeBridge says whether the kernel has bridges.
func ProbeBridge() error { return probe(&netlink.Bridge{LinkAttrs: probeAttrs()}) }

// ProbeVeth says whether the kernel has veth pairs.
func ProbeVeth() error {
	return probe(&netlink.Veth{LinkAttrs: probeAttrs(), PeerName: probeName + "1"})
}

// ProbeConntrack says whether entries of the connection tracking table can be
// seen and deleted.
func ProbeConntrack() error {
	nl, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("bridge: opening netlink: %w", err)
	}
	defer nl.Close()
	// A family without entries: the kernel has only to know the question.
	_, err = nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_DECnet)
	return err
}

func probeAttrs() netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = probeName
	return a
}

func probe(link netlink.Link) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("bridge: opening netlink: %w", err)
	}
	defer nl.Close()
	if err := nl.LinkAdd(link); err != nil {
		return fmt.Errorf("making a %s link: %w", link.Type(), err)
	}
	return nl.LinkDel(link)
}
