// Package foreigntest is the server of an aggregated API in memory: objects of the
// namespaced resource flunders.wardle.example.com, as far as controllers ask for them.
//
// Types: Server is the way to it and itself. It runs no goroutines but those of who
// asks. May be imported by: tests.
package foreigntest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
)

// GroupVersion is what the server has.
var GroupVersion = schema.GroupVersion{Group: "wardle.example.com", Version: "v1alpha1"}

const prefix = "/apis/wardle.example.com/v1alpha1/"

// Server implements foreign.Servers.
type Server struct {
	mu       sync.Mutex // guards what follows
	down     bool
	revision int
	objects  map[string]*metav1.PartialObjectMetadata // by namespace/name
	watchers map[chan event]bool
	users    map[string]bool
}

type event struct {
	Type   watch.EventType              `json:"type"`
	Object metav1.PartialObjectMetadata `json:"object"`
}

// New returns a server without objects.
func New() *Server {
	return &Server{objects: map[string]*metav1.PartialObjectMetadata{}, watchers: map[chan event]bool{}, users: map[string]bool{}}
}

// SetDown has it answer nobody, or answer again.
func (s *Server) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	for w := range s.watchers {
		close(w)
		delete(s.watchers, w)
	}
}

// Users are the names of those who asked.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for u := range s.users {
		out = append(out, u)
	}
	return out
}

// Put makes or replaces an object and returns its UID.
func (s *Server) Put(ns, name string, owners ...metav1.OwnerReference) types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-of-" + name), OwnerReferences: owners}}
	s.store(o)
	return o.UID
}

// Names are those of a namespace's objects.
func (s *Server) Names(ns string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, o := range s.objects {
		if o.Namespace == ns {
			out = append(out, o.Name)
		}
	}
	slices.Sort(out)
	return out
}

func (s *Server) store(o *metav1.PartialObjectMetadata) {
	key := o.Namespace + "/" + o.Name
	t := watch.Modified
	if s.objects[key] == nil {
		t = watch.Added
	}
	s.revision++
	o.ResourceVersion = fmt.Sprint(s.revision)
	if o.DeletionTimestamp != nil && len(o.Finalizers) == 0 {
		t = watch.Deleted
		delete(s.objects, key)
	} else {
		s.objects[key] = o
	}
	for w := range s.watchers {
		w <- event{t, *o}
	}
}

// Foreign implements foreign.Servers.
func (s *Server) Foreign(context.Context) ([]*metav1.APIResourceList, []schema.GroupVersion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, []schema.GroupVersion{GroupVersion}
	}
	return []*metav1.APIResourceList{{GroupVersion: GroupVersion.String(), APIResources: []metav1.APIResource{
		{Name: "flunders", Kind: "Flunder", Namespaced: true, Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}},
		{Name: "flunders/status", Kind: "Flunder", Namespaced: true, Verbs: metav1.Verbs{"get"}},
	}}}, nil
}

// Forward implements foreign.Servers.
func (s *Server) Forward(req *http.Request, as user.Info) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[as.GetName()] = true
	if s.down {
		return nil, errors.New("connection refused")
	}
	ns, name := "", ""
	path := strings.TrimPrefix(req.URL.Path, prefix)
	if rest, ok := strings.CutPrefix(path, "namespaces/"); ok {
		ns, path, _ = strings.Cut(rest, "/")
	}
	if rest, ok := strings.CutPrefix(path, "flunders"); ok {
		name = strings.TrimPrefix(rest, "/")
	} else {
		return answer(http.StatusNotFound, nil), nil
	}
	if req.Method == http.MethodGet && req.URL.Query().Get("watch") != "" {
		return s.watch(req), nil
	}
	if name == "" {
		return s.all(req, ns), nil
	}
	return s.one(req, ns, name), nil
}

func (s *Server) all(req *http.Request, ns string) *http.Response {
	list := metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(s.revision)}}
	for _, o := range s.objects {
		if ns == "" || o.Namespace == ns {
			list.Items = append(list.Items, *o)
		}
	}
	if req.Method == http.MethodDelete {
		for i := range list.Items {
			s.remove(&list.Items[i], "")
		}
	}
	return answer(http.StatusOK, list)
}

func (s *Server) one(req *http.Request, ns, name string) *http.Response {
	o := s.objects[ns+"/"+name]
	if o == nil {
		return answer(http.StatusNotFound, metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
	}
	switch req.Method {
	case http.MethodDelete:
		var opts metav1.DeleteOptions
		if err := json.NewDecoder(req.Body).Decode(&opts); err != nil || opts.PropagationPolicy == nil || opts.Preconditions == nil || *opts.Preconditions.UID != o.UID {
			return answer(http.StatusConflict, nil)
		}
		s.remove(o, *opts.PropagationPolicy)
	case http.MethodPatch:
		var patch struct{ Metadata map[string]json.RawMessage }
		if err := json.NewDecoder(req.Body).Decode(&patch); err != nil || string(patch.Metadata["resourceVersion"]) != `"`+o.ResourceVersion+`"` {
			return answer(http.StatusConflict, nil)
		}
		changed := o.DeepCopy()
		data, _ := json.Marshal(patch.Metadata)
		changed.OwnerReferences, changed.Finalizers = nil, nil
		if err := json.Unmarshal(data, &changed.ObjectMeta); err != nil {
			return answer(http.StatusBadRequest, nil)
		}
		s.store(changed)
	}
	return answer(http.StatusOK, o)
}

// remove deletes as Kubernetes' own servers do.
func (s *Server) remove(o *metav1.PartialObjectMetadata, propagation metav1.DeletionPropagation) {
	gone := o.DeepCopy()
	if gone.DeletionTimestamp == nil {
		gone.DeletionTimestamp = &metav1.Time{Time: time.Unix(1e9, 0)}
	}
	switch propagation {
	case metav1.DeletePropagationForeground:
		gone.Finalizers = append(gone.Finalizers, metav1.FinalizerDeleteDependents)
	case metav1.DeletePropagationOrphan:
		gone.Finalizers = append(gone.Finalizers, metav1.FinalizerOrphanDependents)
	}
	s.store(gone)
}

// Remove deletes an object as a client does.
func (s *Server) Remove(ns, name string, propagation metav1.DeletionPropagation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(s.objects[ns+"/"+name], propagation)
}

func (s *Server) watch(req *http.Request) *http.Response {
	if req.URL.Query().Get("resourceVersion") != fmt.Sprint(s.revision) {
		return answer(http.StatusGone, nil) // it keeps no history: list again
	}
	events := make(chan event, 1000)
	s.watchers[events] = true
	r, w := io.Pipe()
	go func() {
		defer w.Close()
		for {
			select {
			case <-req.Context().Done():
				return
			case e, ok := <-events:
				if !ok || json.NewEncoder(w).Encode(e) != nil {
					return
				}
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Body: r}
}

func answer(code int, body any) *http.Response {
	data, err := json.Marshal(body)
	if err != nil {
		code, data = http.StatusInternalServerError, []byte(err.Error())
	}
	return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(string(data)))}
}
