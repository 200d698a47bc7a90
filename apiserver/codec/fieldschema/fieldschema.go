// Package fieldschema knows, for server-side apply, how the fields of
// upstream's types merge: which lists are sets or maps, which structs atomic.
//
// It is not validation and not the OpenAPI that clients read.
//
// The schema is the one that client-go's apply configurations carry, taken out
// by ./extract, because the package around it brings client-go's REST clients.
// Nothing is parsed until Parser is asked, and then only the types that the
// asked-for ones reach: all 950 cost some 12 MB, a Deployment's 1 MB.
//
// Promises: types.yaml.gz equals the pinned client-go's schema (a test
// compares). It owns no goroutine and keeps nothing. May be imported by:
// apiserver/registry.
//
// Sources: k8s.io/client-go/applyconfigurations/internal/internal.go.
package fieldschema

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"regexp"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

//go:generate go run ./extract types.yaml.gz

//go:embed types.yaml.gz
var packed []byte

// reference finds the types that a type's text names.
var reference = regexp.MustCompile(`namedType: (\S+)`)

// Parser returns a parser of the named types ("io.k8s.api.apps.v1.Deployment")
// and all that they reach. A name that is not in the schema is left out:
// using it fails.
func Parser(names ...string) (*typed.Parser, error) {
	blocks, err := unpack()
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	text.WriteString("types:\n")
	seen := map[string]bool{}
	for todo := names; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		block, ok := blocks[name]
		if seen[name] || !ok {
			continue
		}
		seen[name] = true
		text.WriteString(block)
		for _, m := range reference.FindAllStringSubmatch(block, -1) {
			todo = append(todo, m[1])
		}
	}
	p, err := typed.NewParser(typed.YAMLObject(text.String()))
	if err != nil {
		return nil, fmt.Errorf("parsing the field schema of %v: %w", names, err)
	}
	return p, nil
}

// unpack splits the schema into the text of each type, by name.
func unpack() (map[string]string, error) {
	text, err := Text()
	if err != nil {
		return nil, err
	}
	const begin = "- name: "
	blocks := make(map[string]string, 1000)
	body := strings.TrimPrefix(text, "types:\n")
	for body != "" {
		end := strings.Index(body[1:], "\n"+begin)
		block := body
		if end >= 0 {
			block = body[:end+2]
		}
		body = body[len(block):]
		name, _, _ := strings.Cut(strings.TrimPrefix(block, begin), "\n")
		blocks[name] = block
	}
	return blocks, nil
}

// Text is the whole schema.
func Text() (string, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return "", fmt.Errorf("unpacking the field schema: %w", err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("unpacking the field schema: %w", err)
	}
	return string(data), nil
}
