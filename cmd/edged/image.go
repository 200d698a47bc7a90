package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"edged/runtime/engine"
)

// controlImage is an image as the control socket tells it.
type controlImage struct {
	Names  []string `json:"names"`
	Digest string   `json:"digest"`
	Size   int64    `json:"sizeBytes"`
}

// imageStore is what the control socket needs of the engine.
type imageStore interface {
	ImportImages(ctx context.Context, r io.Reader) ([]engine.Image, error)
	Images(ctx context.Context) ([]engine.Image, error)
	RemoveImage(ctx context.Context, ref string) error
}

// controlImages are the handlers behind `edged image`.
func controlImages(mux *http.ServeMux, images imageStore) {
	mux.Handle("POST /v1/images", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		imported, err := images.ImportImages(r.Context(), r.Body)
		return toControl(imported), err
	}))
	mux.Handle("GET /v1/images", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		all, err := images.Images(r.Context())
		return toControl(all), err
	}))
	mux.Handle("DELETE /v1/images", controlFunc(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, images.RemoveImage(r.Context(), r.URL.Query().Get("ref"))
	}))
}

func toControl(images []engine.Image) []controlImage {
	out := make([]controlImage, 0, len(images))
	for _, im := range images {
		out = append(out, controlImage{Names: im.Names, Digest: im.Digest, Size: im.SizeBytes})
	}
	slices.SortFunc(out, func(a, b controlImage) int { return strings.Compare(first(a.Names), first(b.Names)) })
	return out
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

const imageUsage = `Usage: edged image import FILE...   import image archives (OCI layout or docker save; - is standard input)
       edged image list             list the images of this device
       edged image remove IMAGE...  forget images

Flags:
`

func runImage(ctx context.Context, e env) error {
	var c config
	flags := pflag.NewFlagSet("image", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	c.folderFlags(flags)
	if err := flags.Parse(e.args); err == pflag.ErrHelp {
		_, err = fmt.Fprint(e.stdout, imageUsage, flags.FlagUsages())
		return err
	} else if err != nil {
		return misusef("%w; `edged image --help` tells its use", err)
	}
	if err := c.readFile(flags); err != nil {
		return err
	}
	args := flags.Args()
	if len(args) == 0 {
		return misusef("want import, list or remove; `edged image --help` tells its use")
	}
	switch verb, args := args[0], args[1:]; {
	case verb == "import" && len(args) > 0:
		return importImages(ctx, e, c.runDir, args)
	case verb == "list" && len(args) == 0:
		return listImages(ctx, e, c.runDir)
	case verb == "remove" && len(args) > 0:
		for _, ref := range args {
			if err := callControl(ctx, c.runDir, http.MethodDelete, "/v1/images?ref="+url.QueryEscape(ref), nil, nil); err != nil {
				return fmt.Errorf("remove %s: %w", ref, err)
			}
		}
		return nil
	}
	return misusef("%q: want import FILE..., list, or remove IMAGE...", strings.Join(args, " "))
}

func importImages(ctx context.Context, e env, runDir string, files []string) error {
	for _, name := range files {
		r := e.stdin
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		}
		var imported []controlImage
		if err := callControl(ctx, runDir, http.MethodPost, "/v1/images", r, &imported); err != nil {
			return fmt.Errorf("import %s: %w", filepath.Base(name), err)
		}
		for _, im := range imported {
			for _, n := range im.Names {
				if _, err := fmt.Fprintln(e.stdout, n); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func listImages(ctx context.Context, e env, runDir string) error {
	var all []controlImage
	if err := callControl(ctx, runDir, http.MethodGet, "/v1/images", nil, &all); err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE")
	for _, im := range all {
		for _, n := range im.Names {
			fmt.Fprintf(w, "%s\t%.19s\t%.1f MB\n", n, im.Digest, float64(im.Size)/1e6)
		}
	}
	return w.Flush()
}
