// Package reload keeps values up to date that are made from files: certificates, secrets, the policy. It shows how they are, and how
// certificates are that come from elsewhere.
//
// It looks at what is in the files, again and again, and not at the file system's events: so it does not matter whether a
// file is written in place, renamed over the old one or, as Kubernetes does with mounted Secrets and ConfigMaps, reached
// through a symbolic link that is swapped. It keeps digests of what it has read, never the contents, and neither its errors
// nor its log quote them.
package reload

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Interval is how often a program looks at its files, unless it has a reason of its own.
const Interval = time.Second

// Files are one or more files, and what a value is made of them.
type Files[T any] struct {
	// Paths are the files, at least one.
	Paths []string
	// What they hold, in a word, for the log and the metrics: "policy".
	What string
	// Name says for the metrics which of a kind it is, if there are several: the profile, for a secret.
	Name string
	// Parse makes a value of the contents, in the order of Paths. It may keep them, and must not quote them in its error.
	Parse func(contents [][]byte) (T, error)
	// OnChange, if set, is told each new value after the first, one at a time.
	OnChange func(T)
	// Logger gets one line for each different reason why new files cannot be used, and one when all is well again. Its
	// attributes say which files.
	Logger *slog.Logger
}

// Retry marks an error of Parse: what the files say is right, but depends on something that may yet change, such as another
// file. Without the mark, the same contents are not parsed again. The text of the error stays what it is.
func Retry(err error) error {
	if err == nil {
		return nil
	}
	return retryError{err}
}

type retryError struct{ error }

func (e retryError) Unwrap() error { return e.error }

// maxReported bounds what is remembered of the failures already reported.
const maxReported = 64

// Value is what one or more files say, as of when they last said something usable. Get may be called from anywhere.
type Value[T any] struct {
	files   Files[T]
	current atomic.Pointer[T]
	status  atomic.Pointer[Status]

	mu       sync.Mutex          // guards the rest: one look at a time
	used     digest              // what current was made of
	pending  digest              // seen, and taken seriously when seen again
	tried    bool                // pending could not be parsed the first time
	refused  digest              // could not be parsed, and need not be tried again: see Retry
	reported map[string]struct{} // failures reported since all was well
}

// New reads the files and parses what is in them. Unlike later, a failure now is returned: there is no last good value to
// fall back on. Each file that cannot be read is an error of its own, joined.
func New[T any](files Files[T]) (*Value[T], error) {
	if len(files.Paths) == 0 {
		return nil, errors.New("no file to read")
	}
	files.Paths = slices.Clone(files.Paths)
	v := &Value[T]{files: files, reported: map[string]struct{}{}}
	contents, sum, err := readAll(files.Paths)
	if err != nil {
		return nil, err
	}
	value, err := files.Parse(contents)
	if err != nil {
		return nil, err
	}
	v.store(&value)
	v.used = sum
	return v, nil
}

func (v *Value[T]) store(value *T) {
	v.current.Store(value)
	v.status.Store(&Status{What: v.files.What, Name: v.files.Name, OK: true, Since: time.Now()})
}

// Status is how the value is. Like Get, it may be called from anywhere.
func (v *Value[T]) Status() Status { return *v.status.Load() }

func (v *Value[T]) setOK(ok bool) {
	status := v.Status()
	status.OK = ok
	v.status.Store(&status)
}

// Get returns the last good value.
func (v *Value[T]) Get() T { return *v.current.Load() }

// settling is the part of the interval after which changed files are looked at again.
const settling = 4

// Run looks at the files every interval until ctx is done. It must not run twice at once.
//
// A change counts when it is still the same a quarter of the interval later, so a file that is just being written is left
// alone, and one that is replaced with every look is not ignored for ever. Whoever writes slower than that should write
// another file and rename it.
func (v *Value[T]) Run(ctx context.Context, interval time.Duration) {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if changed := v.look(); changed {
			timer.Reset(interval / settling)
		} else {
			timer.Reset(interval)
		}
	}
}

// look reads the files once, and reports whether there is something that has to be seen again to be used.
func (v *Value[T]) look() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	contents, sum, err := readAll(v.files.Paths)
	switch {
	case err != nil:
		v.pending = digest{}
		v.report(err)
	case sum == v.used:
		v.pending, v.refused = digest{}, digest{}
		v.recovered()
	case sum == v.refused:
		v.pending = digest{}
	case sum != v.pending:
		v.pending, v.tried = sum, false
		return true
	default:
		if v.use(contents, sum) != nil { // one file of several may be new and the others on their way: nobody need hear of the first time
			v.tried = true
		}
	}
	return false
}

// Look is for whoever knows that the files are as they should be: it reads them now, and uses what they say at once. Contents
// that could not be used before are tried again.
func (v *Value[T]) Look() Looked {
	v.mu.Lock()
	defer v.mu.Unlock()
	looked := Looked{Files: v.files.Paths}
	contents, sum, err := readAll(v.files.Paths)
	switch {
	case err != nil:
		v.report(err)
		looked.Err = err
	case sum == v.used:
		v.pending, v.refused = digest{}, digest{}
		v.recovered()
	default:
		v.tried = true
		if looked.Err = v.use(contents, sum); looked.Err == nil {
			looked.Changed = v.files.Paths
		}
	}
	return looked
}

// use makes a value of contents that are there to stay.
func (v *Value[T]) use(contents [][]byte, sum digest) error {
	value, err := v.files.Parse(contents)
	if err != nil {
		if !v.tried {
			return err
		}
		if !errors.As(err, new(retryError)) {
			v.pending, v.refused = digest{}, sum
		}
		v.report(err)
		return err
	}
	v.store(&value)
	v.used, v.pending, v.refused = sum, digest{}, digest{}
	v.recovered()
	if v.files.OnChange != nil {
		v.files.OnChange(value)
	}
	return nil
}

func (v *Value[T]) report(err error) {
	v.setOK(false)
	if _, known := v.reported[err.Error()]; known {
		return
	}
	if len(v.reported) == maxReported {
		clear(v.reported)
	}
	v.reported[err.Error()] = struct{}{}
	v.files.Logger.Error("a replaced file cannot be used; the last good one stays", slog.String("what", v.files.What), slog.Any("cause", err))
}

func (v *Value[T]) recovered() {
	if len(v.reported) == 0 {
		return
	}
	clear(v.reported)
	v.setOK(true)
	v.files.Logger.Info("the file can be used again", slog.String("what", v.files.What))
}
