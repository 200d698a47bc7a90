package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// resolveUser finds whom a process runs as, from the wish, the image's own user
// and the account files below rootfs. extra are supplemental groups; strict
// leaves out those of /etc/group.
func resolveUser(rootfs string, want User, image string, extra []uint32, strict bool) (specs.User, error) {
	name := want.Name
	switch {
	case want.UID != nil:
		name = strconv.FormatUint(uint64(*want.UID), 10)
	case name == "":
		name = image
	}
	passwd, err := openInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	defer passwd.Close()
	group, err := openInRoot(rootfs, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	defer group.Close()
	found, err := user.GetExecUser(name, &user.ExecUser{}, passwd, group)
	if err != nil {
		return specs.User{}, fmt.Errorf("%w: user %q: %w", ErrInvalid, name, err)
	}
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	if want.GID != nil {
		out.GID = *want.GID
	}
	// As containerd: the primary group comes first among the additional ones.
	groups := []uint32{out.GID}
	if !strict && !strings.Contains(name, ":") {
		for _, gid := range found.Sgids {
			groups = append(groups, uint32(gid))
		}
	}
	for _, gid := range append(groups, extra...) {
		if !slices.Contains(out.AdditionalGids, gid) {
			out.AdditionalGids = append(out.AdditionalGids, gid)
		}
	}
	return out, nil
}

// openInRoot opens a file as a process in rootfs would see it; a missing one is
// empty.
func openInRoot(rootfs, path string) (io.ReadCloser, error) {
	empty := io.NopCloser(strings.NewReader(""))
	if rootfs == "" {
		return empty, nil
	}
	real, err := fs.RootPath(rootfs, path)
	if err != nil {
		return nil, fmt.Errorf("find %s in the image: %w", path, err)
	}
	st, err := os.Stat(real)
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return empty, nil
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", path, err)
	}
	return f, nil
}
