package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/duration"

	"edged/cluster/join"
)

const tokenUsage = `Usage: edged token create [--ttl 24h] [--description TEXT]   print a token that lets a device join
       edged token list                                      list the tokens that are valid
       edged token delete ID...                              make tokens worthless

Flags:
`

// controlTokens lets the control socket handle join tokens.
func controlTokens(mux *http.ServeMux, tokens *join.Tokens) {
	mux.Handle("GET /v1/tokens", controlFunc(func(http.ResponseWriter, *http.Request) (any, error) {
		return tokens.List(), nil
	}))
	mux.Handle("POST /v1/tokens", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		ttl, err := time.ParseDuration(r.URL.Query().Get("ttl"))
		if err != nil {
			return nil, err
		}
		tok, err := tokens.Create(r.Context(), ttl, r.URL.Query().Get("description"))
		if err != nil {
			return nil, err
		}
		return tok.String(), nil
	}))
	mux.Handle("DELETE /v1/tokens", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, tokens.Delete(r.Context(), r.URL.Query().Get("id"))
	}))
}

func runToken(ctx context.Context, e env) error {
	var c config
	var ttl time.Duration
	var description, output string
	flags := pflag.NewFlagSet("token", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	flags.DurationVar(&ttl, "ttl", 24*time.Hour, "how long a new token is good for; 0 is until it is deleted")
	flags.StringVar(&description, "description", "", "what a new token is for")
	flags.StringVarP(&output, "output", "o", "", "json, or a table if empty, of list")
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, tokenUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged token --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	if ttl < 0 {
		return misusef("--ttl: %v is negative", ttl)
	}
	args := flags.Args()
	if len(args) == 0 {
		return misusef("want create, list or delete; `edged token --help` tells its use")
	}
	switch verb, args := args[0], args[1:]; {
	case verb == "create" && len(args) == 0:
		var text string
		q := url.Values{"ttl": {ttl.String()}, "description": {description}}
		if err := callControl(ctx, c.runDir, http.MethodPost, "/v1/tokens?"+q.Encode(), nil, &text); err != nil {
			return err
		}
		_, err := fmt.Fprintln(e.stdout, text)
		return err
	case verb == "list" && len(args) == 0:
		return listTokens(ctx, e, c.runDir, output)
	case verb == "delete" && len(args) > 0:
		for _, id := range args {
			if err := callControl(ctx, c.runDir, http.MethodDelete, "/v1/tokens?id="+url.QueryEscape(id), nil, nil); err != nil {
				return err
			}
		}
		return nil
	}
	return misusef("%q: want create, list, or delete ID...", strings.Join(args, " "))
}

func listTokens(ctx context.Context, e env, runDir, output string) error {
	var all []join.Info
	if err := callControl(ctx, runDir, http.MethodGet, "/v1/tokens", nil, &all); err != nil {
		return err
	}
	switch output {
	case "":
	case "json":
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	default:
		return misusef("--output: %q is not json", output)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tEXPIRES IN\tAGE\tDESCRIPTION")
	for _, t := range all {
		expires := "never"
		if !t.Expires.IsZero() {
			expires = duration.HumanDuration(time.Until(t.Expires))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, expires, duration.HumanDuration(time.Since(t.Created)), t.Description)
	}
	return w.Flush()
}
