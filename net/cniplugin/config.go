package cniplugin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
)

// Name is the plugin's.
const Name = "edged-bridge"

const (
	currentVersion = "1.1.0"
	defaultBridge  = "edged-cni0"
	// daemonBridge is not for us: the daemon would take our addresses off it.
	daemonBridge = "edged0"
	// tableName is the nftables table, not the daemon's, which goes with `edged reset`.
	tableName       = "edged-cni"
	defaultStateDir = "/run/edged-cni"
)

// supportedVersions in ascending order.
var supportedVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Error codes of the specification, and one of ours.
const (
	codeVersion      = 1
	codeEnvironment  = 4
	codeDecode       = 6
	codeConfig       = 7
	codeNotAvailable = 50
	codeFailed       = 100
)

// cniError is what a caller gets.
type cniError struct {
	code int
	msg  string
	err  error
}

func (e *cniError) Error() string { return e.msg + ": " + e.err.Error() }
func (e *cniError) Unwrap() error { return e.err }

func failf(code int, msg, format string, args ...any) error {
	return &cniError{code, msg, fmt.Errorf(format, args...)}
}

type config struct {
	CNIVersion   string         `json:"cniVersion"`
	Name         string         `json:"name"`
	Type         string         `json:"type"`
	Bridge       string         `json:"bridge"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	MTU          int            `json:"mtu"`
	Masquerade   *bool          `json:"masquerade"`
	StateDir     string         `json:"stateDir"`
	PrevResult   *result        `json:"prevResult"`
	// Valid are the attachments that GC leaves; the second name is what the
	// first releases with GC sent.
	Valid  []attachment `json:"cni.dev/valid-attachments"`
	Valid2 []attachment `json:"cni.dev/attachments"`
}

type attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

func (a attachment) id() string { return a.ContainerID + "." + a.IfName }

// result is what ADD prints, and what CHECK and DEL get back.
type result struct {
	CNIVersion string        `json:"cniVersion"`
	Interfaces []resultLink  `json:"interfaces"`
	IPs        []resultIP    `json:"ips"`
	Routes     []resultRoute `json:"routes"`
	DNS        struct{}      `json:"dns"`
}

type resultLink struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"` // from 1.1 on
	Sandbox string `json:"sandbox,omitempty"`
}

type resultIP struct {
	Version   string       `json:"version,omitempty"` // before 1.0
	Address   netip.Prefix `json:"address"`
	Gateway   netip.Addr   `json:"gateway"`
	Interface int          `json:"interface"`
}

type resultRoute struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw"`
}

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// parse reads a configuration; what it returns beside an error has the version in
// which the error is to be told.
func parse(data []byte) (*config, error) {
	c := &config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, &cniError{codeDecode, "failed to decode the network configuration", err}
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // as the specification has it
	}
	if !slices.Contains(supportedVersions, c.CNIVersion) {
		return c, failf(codeVersion, "incompatible CNI version", "%q is not one of %v", c.CNIVersion, supportedVersions)
	}
	invalid := func(format string, args ...any) (*config, error) {
		return c, failf(codeConfig, "invalid network configuration", format, args...)
	}
	if !networkName.MatchString(c.Name) {
		return invalid("name %q is not one of a network", c.Name)
	}
	if c.Bridge == "" {
		c.Bridge = defaultBridge
	}
	if c.Bridge == daemonBridge {
		return invalid("bridge %s belongs to the daemon", c.Bridge)
	}
	if c.StateDir == "" {
		c.StateDir = filepath.Join(defaultStateDir, c.Name)
	}
	if !filepath.IsAbs(c.StateDir) {
		return invalid("stateDir %q is not an absolute path", c.StateDir)
	}
	if len(c.PodCIDRs) == 0 {
		return invalid("podCIDRs is missing")
	}
	if len(c.ClusterCIDRs) == 0 {
		c.ClusterCIDRs = c.PodCIDRs
	}
	return c, nil
}
