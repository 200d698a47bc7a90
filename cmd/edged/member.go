package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"edged/apiserver/registry"
)

const memberUsage = `Usage: edged member list              list the devices of the cluster and their part in it
       edged member remove MEMBER...  take devices out of the cluster, for good
       edged member promote MEMBER    give a device a vote

MEMBER is a name or an id.

Flags:
`

// controlMember is a member as 'edged member list' shows it.
type controlMember struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
	Role     string   `json:"role"`
	Ready    bool     `json:"ready"`
}

func (d *device) controlMembers(mux *http.ServeMux) {
	mux.Handle("GET /v1/members", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return d.members(r.Context())
	}))
	mux.Handle("DELETE /v1/members", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		m, err := d.findMember(r.Context(), r.URL.Query().Get("member"))
		if err != nil {
			return nil, err
		}
		return struct{}{}, d.removeMember(r.Context(), m)
	}))
	mux.Handle("POST /v1/members/promote", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		m, err := d.findMember(r.Context(), r.URL.Query().Get("member"))
		if err != nil {
			return nil, err
		}
		_, err = d.store.MemberPromote(r.Context(), &pb.MemberPromoteRequest{ID: m.ID})
		return struct{}{}, err
	}))
}

func (d *device) members(ctx context.Context) ([]controlMember, error) {
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return nil, err
	}
	leader, witnesses := d.store.Leader(), d.witnesses(ctx)
	out := []controlMember{}
	for _, m := range list.Members {
		role := roleOf(m, leader, witnesses)
		out = append(out, controlMember{ID: fmt.Sprintf("%x", m.ID), Name: m.Name, PeerURLs: m.PeerURLs, Role: role, Ready: d.isReady(m.Name)})
	}
	return out, nil
}

// findMember finds a member by its name or its id.
func (d *device) findMember(ctx context.Context, text string) (*pb.Member, error) {
	list, err := d.store.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return nil, err
	}
	id, idErr := strconv.ParseUint(text, 16, 64)
	for _, m := range list.Members {
		if m.Name == text && text != "" || idErr == nil && m.ID == id {
			return m, nil
		}
	}
	return nil, fmt.Errorf("there is no member %q; `edged member list` lists them", text)
}

// removeMember takes a device out: its vote, its copy of the state and its Node.
func (d *device) removeMember(ctx context.Context, m *pb.Member) error {
	if _, err := d.store.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.ID}); err != nil {
		return err
	}
	if err := d.forgetMarks(ctx, m.ID); err != nil {
		return err
	}
	d.log.Info("a device was removed", "device", m.Name, "member", fmt.Sprintf("%x", m.ID))
	if m.Name == "" {
		return nil
	}
	err := registry.For[*corev1.Node](d.registry).Delete(ctx, "", m.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("the member is removed, its Node is not: %w", err)
	}
	return nil
}

func runMember(ctx context.Context, e env) error {
	var c config
	var output string
	flags := pflag.NewFlagSet("member", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	flags.StringVarP(&output, "output", "o", "", "json, or a table if empty, of list")
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, memberUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged member --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	if output != "" && output != "json" {
		return misusef("--output: %q is not json", output)
	}
	args := flags.Args()
	if len(args) == 0 {
		return misusef("want list, remove or promote; `edged member --help` tells its use")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch verb, args := args[0], args[1:]; {
	case verb == "list" && len(args) == 0:
		return listMembers(ctx, e, c.runDir, output)
	case verb == "remove" && len(args) > 0:
		for _, m := range args {
			if err := callControl(ctx, c.runDir, http.MethodDelete, "/v1/members?member="+url.QueryEscape(m), nil, nil); err != nil {
				return fmt.Errorf("remove %s: %w", m, err)
			}
		}
		return nil
	case verb == "promote" && len(args) == 1:
		return callControl(ctx, c.runDir, http.MethodPost, "/v1/members/promote?member="+url.QueryEscape(args[0]), nil, nil)
	}
	return misusef("%q: want list, remove MEMBER..., or promote MEMBER", strings.Join(args, " "))
}

func listMembers(ctx context.Context, e env, runDir, output string) error {
	var all []controlMember
	if err := callControl(ctx, runDir, http.MethodGet, "/v1/members", nil, &all); err != nil {
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tROLE\tREADY\tPEER ADDRESS")
	for _, m := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\n", m.ID, m.Name, m.Role, m.Ready, strings.Join(m.PeerURLs, ","))
	}
	return w.Flush()
}
