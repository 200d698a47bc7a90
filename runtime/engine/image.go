package engine

import (
	"strconv"
	"strings"
	"time"
)

// Image is an image that is complete, for this device's platform, and unpacked.
type Image struct {
	// ID is the digest of the configuration: what Kubernetes calls the image's id.
	ID string
	// Digest is that of the manifest or index which the names point to.
	Digest string
	// Names are repository:tag, fully qualified, sorted.
	Names []string
	// RepoDigests are repository@digest, sorted.
	RepoDigests []string
	// SizeBytes of the compressed content.
	SizeBytes int64
	CreatedAt time.Time
	// Pulled says that a registry gave the image, and may give it again. An import
	// did not.
	Pulled bool
	Config ImageConfig
}

// ImageConfig is what a container inherits from its image.
type ImageConfig struct {
	User       string
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	StopSignal string
	Labels     map[string]string
	Volumes    []string
}

// UserID splits the image's user as the kubelet's runAsNonRoot check wants it:
// a number, or a name that cannot be judged without the image. No user is 0.
func (c ImageConfig) UserID() (uid *int64, name string) {
	user, _, _ := strings.Cut(c.User, ":")
	if user == "" {
		return new(int64), ""
	}
	if n, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &n, ""
	}
	return nil, user
}

// Auth are credentials for one registry. The zero Auth is anonymous.
type Auth struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string
}

// PullOptions say how to pull.
type PullOptions struct {
	// Auth are the credentials to try for a host after anonymous access was refused.
	// Nil: none.
	Auth func(host string) Auth
	// HostsDir is a folder in the layout of containerd's certs.d: <host>/hosts.toml.
	HostsDir string
	// Registries is the path of a registries.yaml; it need not exist.
	Registries string
	// Source is asked before the registry; may be nil.
	Source Source
	// Fresh has the registry say what a name means, whatever others know.
	Fresh bool
	// Progress is called now and then with the bytes fetched and, as far as known,
	// to be fetched.
	Progress func(done, total int64)
}
