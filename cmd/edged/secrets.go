package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"sigs.k8s.io/yaml"

	"edged/apiserver/registry"
	"edged/cluster/identity"
	"edged/cluster/join"
	"edged/cluster/rollout"
	"edged/cluster/seal"
)

const secretsUsage = `Usage: edged secrets status        tell how Secrets are stored, and which devices can read them
       edged secrets rotate        give them another key; what there is is sealed anew
       edged secrets export        print the keys as a kube-apiserver's --encryption-provider-config
       edged secrets import FILE   give the cluster keys that were exported; - is the standard input

A snapshot of the cluster's state that is restored where no device of it is left
holds Secrets that nobody can read without what 'export' printed: keep that apart
from snapshots, and secret.

Flags:
`

// sealUse is what a device derives for the keys of Secrets (identity.DeviceKey).
const sealUse = "secrets"

// newDeviceKey makes the key of a device that is about to become one of a cluster,
// and what it tells of it.
func newDeviceKey() (key identity.DeviceKey, public []byte, err error) {
	if key, err = identity.NewDeviceKey(); err != nil {
		return key, nil, err
	}
	secret, err := key.Derive(sealUse)
	if err != nil {
		return key, nil, err
	}
	public, err = seal.PublicKey(secret)
	return key, public, err
}

// openSeals makes the keys of the Secrets in store.
func (d *device) openSeals(store registry.Store) error {
	secret, err := d.identity.DeviceKey().Derive(sealUse)
	if err != nil {
		return err
	}
	d.seals, err = seal.New(seal.Config{Store: store, Secret: secret, Member: d.store.MemberID(), Name: d.cfg.nodeName, Logger: d.log})
	return err
}

// admitToSecrets lets a device that joins read Secrets from its start on.
func (d *device) admitToSecrets(ctx context.Context, req join.Request, members []*pb.Member) error {
	if len(req.PublicKey) == 0 {
		return nil
	}
	i := slices.IndexFunc(members, func(m *pb.Member) bool { return m.Name == "" && slices.Equal(m.PeerURLs, req.PeerURLs) })
	if i < 0 {
		return errors.New("the device has been removed while it joined")
	}
	return d.seals.Register(ctx, seal.Device{Member: members[i].ID, Name: req.NodeName, PublicKey: req.PublicKey})
}

// leadSeals keeps Secrets sealed for the members that there are.
func (d *device) leadSeals(ctx context.Context) error {
	return d.seals.Lead(ctx, seal.Cluster{
		Members: func(ctx context.Context) ([]uint64, error) {
			list, err := d.store.MemberList(ctx, &pb.MemberListRequest{})
			if err != nil {
				return nil, err
			}
			var ids []uint64
			for _, m := range list.Members {
				ids = append(ids, m.ID)
			}
			return ids, nil
		},
		Able: d.allReadSealed,
	})
}

// allReadSealed asks every device. While a rollout is on, one may be taken back to
// the daemon before.
func (d *device) allReadSealed(ctx context.Context) bool {
	if s, on, err := d.rolloutState(); err != nil || on && s.Phase == rollout.Running {
		return false
	}
	s, err := d.clusterStatus(ctx)
	return err == nil && !slices.ContainsFunc(s.Devices, func(s deviceStatus) bool { return !s.ReadsSealed })
}

// encryptionConfiguration is the part of Kubernetes' file of that name, version
// apiserver.config.k8s.io/v1, that edged writes and reads.
type encryptionConfiguration struct {
	Kind       string              `json:"kind"`
	APIVersion string              `json:"apiVersion"`
	Resources  []encryptedResource `json:"resources"`
}

type encryptedResource struct {
	Resources []string             `json:"resources"`
	Providers []encryptionProvider `json:"providers"`
}

type encryptionProvider struct {
	AESGCM   *encryptionKeys `json:"aesgcm,omitempty"`
	Identity *struct{}       `json:"identity,omitempty"`
}

type encryptionKeys struct {
	Keys []encryptionKey `json:"keys"`
}

type encryptionKey struct {
	Name   string `json:"name"`
	Secret []byte `json:"secret"`
}

func configurationOf(keys []seal.Key) ([]byte, error) {
	var out encryptionKeys
	for _, k := range keys {
		out.Keys = append(out.Keys, encryptionKey(k))
	}
	return yaml.Marshal(encryptionConfiguration{
		Kind: "EncryptionConfiguration", APIVersion: "apiserver.config.k8s.io/v1",
		Resources: []encryptedResource{{Resources: []string{"secrets"}, Providers: []encryptionProvider{{AESGCM: &out}, {Identity: &struct{}{}}}}},
	})
}

func keysIn(file []byte) (keys []seal.Key, err error) {
	var c encryptionConfiguration
	if err := yaml.Unmarshal(file, &c); err != nil {
		return nil, err
	}
	for _, r := range c.Resources {
		for _, p := range r.Providers {
			if p.AESGCM == nil || !slices.Contains(r.Resources, "secrets") {
				continue
			}
			for _, k := range p.AESGCM.Keys {
				keys = append(keys, seal.Key(k))
			}
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no aesgcm keys for secrets: want an EncryptionConfiguration, as `edged secrets export` prints it")
	}
	return keys, nil
}

func (d *device) controlSecrets(mux *http.ServeMux) {
	mux.Handle("GET /v1/secrets", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return d.seals.Status(r.Context())
	}))
	mux.Handle("POST /v1/secrets/rotate", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, d.seals.Rotate(r.Context())
	}))
	mux.Handle("GET /v1/secrets/keys", controlFunc(func(w http.ResponseWriter, r *http.Request) (any, error) {
		keys, err := d.seals.Export(r.Context())
		if err != nil {
			return nil, err
		}
		file, err := configurationOf(keys)
		if err != nil {
			return nil, err
		}
		_, err = w.Write(file)
		return nil, err
	}))
	mux.Handle("POST /v1/secrets/keys", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		var keys []seal.Key
		if err := json.NewDecoder(r.Body).Decode(&keys); err != nil {
			return nil, err
		}
		return struct{}{}, d.seals.Import(r.Context(), keys)
	}))
}

func runSecrets(ctx context.Context, e env) error {
	var c config
	flags := pflag.NewFlagSet("secrets", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, secretsUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged secrets --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	args := flags.Args()
	switch verb := strings.Join(args, " "); {
	case verb == "status":
		return secretsStatus(ctx, e, c.runDir)
	case verb == "rotate":
		return callControl(ctx, c.runDir, http.MethodPost, "/v1/secrets/rotate", nil, nil)
	case verb == "export":
		return callControl(ctx, c.runDir, http.MethodGet, "/v1/secrets/keys", nil, e.stdout)
	case len(args) == 2 && args[0] == "import":
		return importKeys(ctx, e, c.runDir, args[1])
	}
	return misusef("want status, rotate, export or import FILE; `edged secrets --help` tells its use")
}

func importKeys(ctx context.Context, e env, runDir, name string) error {
	file, err := os.ReadFile(name)
	if name == "-" {
		file, err = io.ReadAll(io.LimitReader(e.stdin, 1<<20))
	}
	if err != nil {
		return err
	}
	keys, err := keysIn(file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	body, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	return callControl(ctx, runDir, http.MethodPost, "/v1/secrets/keys", bytes.NewReader(body), nil)
}

func secretsStatus(ctx context.Context, e env, runDir string) error {
	var s seal.Status
	if err := callControl(ctx, runDir, http.MethodGet, "/v1/secrets", nil, &s); err != nil {
		return err
	}
	if !s.Sealing {
		_, err := fmt.Fprintf(e.stdout, "Secrets are stored in the clear until every device can read them sealed.\ncan: %s\n", names(s.Devices))
		return err
	}
	fmt.Fprintf(e.stdout, "Secrets are stored sealed.\nkey: %s\n", s.Keys[0])
	if len(s.Keys) > 1 {
		fmt.Fprintf(e.stdout, "sealed anew from: %s\n", names(s.Keys[1:]))
	}
	if len(s.Missing) > 0 {
		fmt.Fprintf(e.stdout, "this device lacks: %s; `edged secrets import` gives them\n", names(s.Missing))
	}
	_, err := fmt.Fprintf(e.stdout, "devices that can read them: %s\nnot yet: %s\n", names(s.Devices), names(s.Waiting))
	return err
}
