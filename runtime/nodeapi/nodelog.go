package nodeapi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Upstream's bounds of what a query may ask for.
const (
	maxTailLines     = 100000
	maxServiceLength = 256
	maxServices      = 4
)

var unsafeInServiceName = regexp.MustCompile(`[^a-zA-Z\-_.:0-9@]+`)

// nodeLogs serves the device's own logs as the kubelet does: the files of a folder,
// and with ?query= those of a service or one of them. Nothing outside the folder is
// served, also not by a link: Pods may write to it. There is no journal to ask, so
// that a service's log is what it has written to files.
func nodeLogs(dir string) http.Handler {
	return http.StripPrefix("/logs/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		defer root.Close()
		q, errs := newLogQuery(r.URL.Query())
		if len(errs) > 0 {
			http.Error(w, errs.ToAggregate().Error(), http.StatusBadRequest)
			return
		}
		if !reflect.DeepEqual(q, logQuery{}) {
			if r.URL.Path != "/" && r.URL.Path != "" {
				http.Error(w, "path not allowed in query mode", http.StatusNotAcceptable)
				return
			}
			if errs := q.validate(root); len(errs) > 0 {
				http.Error(w, errs.ToAggregate().Error(), http.StatusNotAcceptable)
				return
			}
			if len(q.services) > 0 {
				w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
				q.copy(w, root)
				return
			}
			r.URL.Path = strings.ReplaceAll(q.files[0], `\`, "/")
		}
		http.FileServerFS(logFiles{root}).ServeHTTP(w, r)
	}))
}

// logFiles are the files and folders below a root. What would wait for somebody when it
// is opened (a fifo), or do something (a device), is not there: Pods may have made it.
type logFiles struct{ root *os.Root }

func (l logFiles) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	info, err := l.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !isFile(info) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	// Somebody may put a fifo in its place meanwhile.
	f, err := l.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil && !isFile(info) {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func isFile(info fs.FileInfo) bool { return info.Mode().IsRegular() || info.IsDir() }

// logQuery is what ?query= and its options ask for.
type logQuery struct {
	services, files []string
	options         journalOptions
}

// journalOptions are options that only a journal could follow.
type journalOptions struct {
	since, until *time.Time
	tail, boot   *int
	pattern      string
}

func newLogQuery(query url.Values) (logQuery, field.ErrorList) {
	var q logQuery
	var errs field.ErrorList
	asked, ok := query["query"]
	for _, s := range asked {
		if strings.ContainsAny(s, `/\`) {
			q.files = append(q.files, s)
		} else if strings.TrimSpace(s) != "" {
			q.services = append(q.services, s)
		}
	}
	if ok && len(q.files) == 0 && len(q.services) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("query"), asked, "may not be empty"))
	}
	at := func(name string) *time.Time {
		s := query.Get(name)
		if s == "" {
			return nil
		}
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			errs = append(errs, field.Invalid(field.NewPath(name), s, "invalid time format"))
			return nil
		}
		return &t
	}
	number := func(name string) *int {
		s := query.Get(name)
		if s == "" {
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			errs = append(errs, field.Invalid(field.NewPath(name), s, err.Error()))
			return nil
		}
		return &n
	}
	q.options = journalOptions{since: at("sinceTime"), until: at("untilTime"), boot: number("boot"), tail: number("tailLines"), pattern: query.Get("pattern")}
	return q, errs
}

func (q logQuery) validate(root *os.Root) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("query")
	for _, s := range q.services {
		switch {
		case len(s) > maxServiceLength:
			errs = append(errs, field.Invalid(at, s, fmt.Sprintf("length must be less than %d", maxServiceLength)))
		case unsafeInServiceName.MatchString(s):
			errs = append(errs, field.Invalid(at, s, "input contains unsupported characters"))
		}
	}
	if len(q.services) > maxServices {
		errs = append(errs, field.TooMany(at, len(q.services), maxServices))
	}
	switch {
	case len(q.files) == 0 && len(q.services) == 0:
		errs = append(errs, field.Required(at, "cannot be empty with options"))
	case len(q.files) > 0 && len(q.services) > 0:
		errs = append(errs, field.Invalid(at, fmt.Sprintf("%v, %v", q.files, q.services), "cannot specify a file and service"))
	case len(q.files) > 1:
		errs = append(errs, field.Invalid(at, q.files, "cannot specify more than one file"))
	case len(q.files) == 1 && q.options != (journalOptions{}):
		errs = append(errs, field.Invalid(at, q.files, "cannot specify file with options"))
	case len(q.files) == 1:
		name := strings.TrimLeft(strings.ReplaceAll(q.files[0], `\`, "/"), "/")
		if _, err := root.Stat(name); err != nil {
			errs = append(errs, field.Invalid(at, q.files, err.Error()))
		}
	}
	o := q.options
	if o.since != nil && o.until != nil && o.since.After(*o.until) {
		errs = append(errs, field.Invalid(field.NewPath("untilTime"), o.until, "must be after `sinceTime`"))
	}
	if o.boot != nil && *o.boot > 0 {
		errs = append(errs, field.Invalid(field.NewPath("boot"), *o.boot, "must be less than 1"))
	}
	if o.tail != nil {
		for _, why := range validation.IsInRange(*o.tail, 0, maxTailLines) {
			errs = append(errs, field.Invalid(field.NewPath("tailLines"), *o.tail, why))
		}
	}
	if _, err := syntax.Parse(o.pattern, syntax.Perl); err != nil {
		errs = append(errs, field.Invalid(field.NewPath("pattern"), o.pattern, err.Error()))
	}
	return errs
}

// copy writes the files of services, in upstream's order of guesses and words.
func (q logQuery) copy(w io.Writer, root *os.Root) {
	if q.options != (journalOptions{}) {
		fmt.Fprintf(w, "\noptions present and query resolved to log files for %v\ntry without specifying options\n", q.services)
		return
	}
	for _, service := range q.services {
		err := fs.ErrNotExist
		for _, name := range []string{service, service + ".log", path.Join(service, service+".log")} {
			if err = copyLog(w, root, name); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			fmt.Fprintf(w, "\nlog not found for %s\n", service)
		case err != nil:
			fmt.Fprintf(w, "\nerror getting log for %s: %v\n", service, err)
		}
	}
}

func copyLog(w io.Writer, root *os.Root, name string) error {
	f, err := logFiles{root}.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.IsDir() {
		return fs.ErrNotExist // its own are in files below
	}
	_, err = io.Copy(w, f)
	return err
}
