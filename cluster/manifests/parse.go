package manifests

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	// maxFileBytes bounds a file.
	maxFileBytes = 16 << 20
	// maxObjects bounds what one file holds.
	maxObjects = 10_000
)

// parse reads the objects of a file: YAML documents or JSON, Lists opened. JSON
// is YAML.
func parse(data []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		var content any
		if err := yaml.UnmarshalStrict(doc, &content, keepNumbers); err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if content == nil { // comments only
			continue
		}
		fields, ok := content.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("document %d: want an object with apiVersion and kind", n)
		}
		if out, err = appendObjects(out, fields, ""); err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(out) > maxObjects {
			return nil, fmt.Errorf("more than %d objects: split the file", maxObjects)
		}
	}
}

// keepNumbers lets large whole numbers stay what they are.
func keepNumbers(d *json.Decoder) *json.Decoder { d.UseNumber(); return d }

// appendObjects appends an object, or those of a list. Items of a typed list
// (a PodList) need not say what they are.
func appendObjects(out []*unstructured.Unstructured, fields map[string]any, listOf string) ([]*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{Object: fields}
	if listOf != "" && o.GetKind() == "" {
		apiVersion, kind, _ := strings.Cut(listOf, " ")
		o.SetAPIVersion(apiVersion)
		o.SetKind(kind)
	}
	if o.GetAPIVersion() == "" {
		return nil, errors.New("apiVersion is missing")
	}
	kind := o.GetKind()
	if kind == "" {
		return nil, errors.New("kind is missing")
	}
	items, isList := fields["items"].([]any)
	if !isList || !strings.HasSuffix(kind, "List") {
		if o.GetName() == "" {
			return nil, fmt.Errorf("%s: metadata.name is missing", kind)
		}
		return append(out, clean(o)), nil
	}
	of := ""
	if item := strings.TrimSuffix(kind, "List"); item != "" {
		of = o.GetAPIVersion() + " " + item
	}
	for i, item := range items {
		f, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: item %d is not an object", kind, i)
		}
		if _, nested := f["items"].([]any); nested {
			return nil, fmt.Errorf("%s: item %d is a list itself", kind, i)
		}
		var err error
		if out, err = appendObjects(out, f, of); err != nil {
			return nil, fmt.Errorf("%s: item %d: %w", kind, i, err)
		}
	}
	return out, nil
}

// clean takes out what a server wrote into an object that was dumped from a
// cluster: it says nothing about what the object should be.
func clean(o *unstructured.Unstructured) *unstructured.Unstructured {
	for _, f := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	delete(o.Object, "status")
	return o
}
