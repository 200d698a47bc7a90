package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// SetGroup sets the CPU share of a group of containers, a Pod's, against other
// groups; the limits of each container are its own. The group is there once a
// container was created in it; one that is not is left alone.
func (e *Engine) SetGroup(group string, cpuShares uint64) error {
	c := e.host.cgroups
	path, value := c.file(group, "cpu", "cpu.shares"), cpuShares
	if c.isV2() {
		path, value = c.file(group, "", "cpu.weight"), weight(cpuShares)
	} else if c.v1["cpu"] == "" {
		return nil // a kernel without the controller
	}
	err := os.WriteFile(path, strconv.AppendUint(nil, value, 10), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the CPU share of control group %s: %w", group, err)
	}
	return nil
}

// weight converts shares of cgroup v1, 2 to 262144, to a weight of v2, 1 to
// 10000, as the kubelet does (KEP-2254).
func weight(shares uint64) uint64 {
	return 1 + (min(max(shares, 2), 262144)-2)*9999/262142
}
