package openapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// described is what the documents in upstream's repository leave out of a schema:
// the values that it may have, and what they mean.
type described struct {
	description string
	enum        []any
	properties  map[string]*described
	values      *described // of a list's items, of a map's values
}

// describe adds to the schema s.
func (d *described) describe(s map[string]any) {
	if len(d.enum) > 0 {
		s["enum"], s["description"] = d.enum, d.description
	}
	properties, _ := s["properties"].(map[string]any)
	for name, p := range properties {
		if of := d.properties[name]; of != nil {
			of.describe(p.(map[string]any))
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if of, ok := s[key].(map[string]any); ok && d.values != nil {
			d.values.describe(of)
		}
	}
}

// definitions are the schemas that upstream generates from its types, by name
// ("io.k8s.api.core.v1.Pod"). The file is read, not imported: importing it takes
// modules that nothing else here needs.
func definitions(t *testing.T, file string) map[string]*described {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string]string{}
	for _, i := range f.Imports {
		if i.Name != nil {
			imports[i.Name.Name] = literal(i.Path)
		}
	}
	functions := map[string]*ast.FuncDecl{}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			functions[fn.Name.Name] = fn
		}
	}
	defs := map[string]*described{}
	for _, e := range composite(functions["GetOpenAPIDefinitions"]).Elts {
		// v1.Pod{}.OpenAPIModelName(): schema_k8sio_api_core_v1_Pod(ref),
		kv := e.(*ast.KeyValueExpr)
		name, ok := modelName(kv.Key, imports)
		if !ok {
			continue
		}
		definition := composite(functions[kv.Value.(*ast.CallExpr).Fun.(*ast.Ident).Name])
		defs[name] = schemaOf(member(definition, "Schema"))
	}
	if len(defs) < 500 {
		t.Fatalf("only %d definitions in %s", len(defs), file)
	}
	return defs
}

// composite is the first composite literal of a function.
func composite(fn *ast.FuncDecl) (found *ast.CompositeLit) {
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if c, ok := n.(*ast.CompositeLit); ok && found == nil {
			found = c
		}
		return found == nil
	})
	return found
}

func modelName(key ast.Expr, imports map[string]string) (string, bool) {
	call, ok := key.(*ast.CallExpr)
	if !ok {
		return "", false
	}
	of, ok := call.Fun.(*ast.SelectorExpr).X.(*ast.CompositeLit)
	if !ok {
		return "", false
	}
	typ := of.Type.(*ast.SelectorExpr)
	host, rest, _ := strings.Cut(imports[typ.X.(*ast.Ident).Name], "/")
	parts := strings.Split(host, ".")
	slices.Reverse(parts)
	return strings.Join(append(append(parts, strings.Split(rest, "/")...), typ.Sel.Name), "."), true
}

// member is the value of a field of a struct's literal, nil if it is not said.
func member(e ast.Expr, field string) ast.Expr {
	if u, ok := e.(*ast.UnaryExpr); ok {
		e = u.X
	}
	c, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, e := range c.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if id, ok := kv.Key.(*ast.Ident); ok && id.Name == field {
				return kv.Value
			}
		}
	}
	return nil
}

// schemaOf reads the literal of a spec.Schema.
func schemaOf(e ast.Expr) *described {
	props := member(e, "SchemaProps")
	if props == nil {
		return nil
	}
	d := &described{description: literal(member(props, "Description")), properties: map[string]*described{}}
	if enum, ok := member(props, "Enum").(*ast.CompositeLit); ok {
		for _, v := range enum.Elts {
			d.enum = append(d.enum, literal(v))
		}
	}
	if of, ok := member(props, "Properties").(*ast.CompositeLit); ok {
		for _, p := range of.Elts {
			kv := p.(*ast.KeyValueExpr)
			d.properties[literal(kv.Key)] = schemaOf(kv.Value)
		}
	}
	for _, field := range []string{"Items", "AdditionalProperties"} {
		if of := member(props, field); of != nil {
			d.values = schemaOf(member(of, "Schema"))
		}
	}
	return d
}

// literal is a string's value, "" of what is none.
func literal(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
		if s, err := strconv.Unquote(l.Value); err == nil {
			return s
		}
	}
	return ""
}
