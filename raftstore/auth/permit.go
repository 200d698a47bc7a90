package auth

import (
	"bytes"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
)

// Admin tells whether the caller has the root role.
func (s *State) Admin(by Caller) error {
	if !s.enabled || by == Trusted {
		return nil
	}
	if by.User == "" {
		return ErrUserEmpty
	}
	u := s.users[by.User]
	switch {
	case u == nil:
		return ErrUserNotFound
	case !hasRole(u, rootRole):
		return ErrPermissionDenied
	}
	return nil
}

// Read tells whether the caller may read [key, end).
func (s *State) Read(by Caller, key, end []byte) error {
	return s.permit(by, key, end, authpb.Permission_READ)
}

// Write tells whether the caller may write and delete in [key, end).
func (s *State) Write(by Caller, key, end []byte) error {
	return s.permit(by, key, end, authpb.Permission_WRITE)
}

func (s *State) permit(by Caller, key, end []byte, kind authpb.Permission_Type) error {
	if !s.enabled || by == Trusted {
		return nil
	}
	switch {
	case by.Revision == 0:
		return ErrUserEmpty
	case by.Revision < s.revision:
		return ErrOldRevision
	}
	u := s.users[by.User]
	if u == nil {
		return ErrPermissionDenied
	}
	if hasRole(u, rootRole) || s.merged[by.User].covers(key, end, kind) {
		return nil
	}
	return ErrPermissionDenied
}

// interval is [from, to); open has no upper end.
type interval struct {
	from, to []byte
	open     bool
}

// permissions are what a user's roles grant together: ascending, disjoint.
type permissions struct{ read, write []interval }

// refresh works out what each user may do, so that asking changes nothing.
func (s *State) refresh() {
	clear(s.merged)
	for name, u := range s.users {
		s.merged[name] = s.combine(u)
	}
}

func (s *State) combine(u *authpb.User) *permissions {
	p := &permissions{}
	for _, name := range u.Roles {
		for _, k := range s.roles[name].GetKeyPermission() {
			i := asInterval(k.Key, k.RangeEnd)
			both := k.PermType == authpb.Permission_READWRITE // what is none of the three permits nothing
			if both || k.PermType == authpb.Permission_READ {
				p.read = append(p.read, i)
			}
			if both || k.PermType == authpb.Permission_WRITE {
				p.write = append(p.write, i)
			}
		}
	}
	p.read, p.write = merge(p.read), merge(p.write)
	return p
}

// asInterval follows etcd: no end is the key alone, "\0" is everything from it.
func asInterval(key, end []byte) interval {
	switch {
	case len(end) == 0:
		return interval{from: key, to: append(bytes.Clone(key), 0)}
	case isOpen(end):
		return interval{from: key, open: true}
	}
	return interval{from: key, to: end}
}

func isOpen(end []byte) bool { return len(end) == 1 && end[0] == 0 }

func merge(in []interval) []interval {
	slices.SortFunc(in, func(a, b interval) int { return bytes.Compare(a.from, b.from) })
	var out []interval
	for _, i := range in {
		n := len(out) - 1
		if n < 0 || !out[n].open && bytes.Compare(out[n].to, i.from) < 0 {
			out = append(out, i)
			continue
		}
		if i.open {
			out[n].open = true
		} else if !out[n].open && bytes.Compare(i.to, out[n].to) > 0 {
			out[n].to = i.to
		}
	}
	return out
}

func (p *permissions) covers(key, end []byte, kind authpb.Permission_Type) bool {
	in := p.read
	if kind == authpb.Permission_WRITE {
		in = p.write
	}
	want := asInterval(key, end)
	n, found := slices.BinarySearchFunc(in, want.from, func(i interval, from []byte) int { return bytes.Compare(i.from, from) })
	if !found {
		n--
	}
	if n < 0 {
		return false
	}
	return in[n].open || !want.open && bytes.Compare(want.to, in[n].to) <= 0
}

// validRange refuses permissions that cover nothing.
func validRange(key, end []byte) bool {
	return len(key) > 0 && (len(end) == 0 || isOpen(end) || bytes.Compare(key, end) < 0)
}
