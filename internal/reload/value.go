// Package reload keeps values up to date that are made from files: certificates, secrets, the
// policy.
//
// It reads the files again and again instead of watching file system events, so a file may be
// written in place, renamed over the old one or, as Kubernetes does with mounted Secrets and
// ConfigMaps, reached through a symbolic link that is swapped. It keeps digests of what it has
// read, never the contents, and neither its errors nor its log quote them.
package reload

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Interval is the default time between two reads of a file.
const Interval = time.Second

// Files describes one or more files and the value made from them.
type Files[T any] struct {
	// Paths are the files, at least one.
	Paths []string
	// What the files hold, in one word, for the log and the metrics: "policy".
	What string
	// Name distinguishes several of a kind in the metrics: the profile, for a secret.
	Name string
	// Parse makes a value from the contents, in the order of Paths. It may keep them and must not
	// quote them in its error. It is called again and again while it fails, because an error may
	// depend on the time or on another file.
	Parse func(contents [][]byte) (T, error)
	// OnChange, if set, is called with each new value after the first. A Watcher calls one at a
	// time.
	OnChange func(T)
	// Logger gets one line for each different reason why new files cannot be used, and one when
	// they can be used again. Its attributes name the files.
	Logger *slog.Logger

	certificate func(T) *x509.Certificate // the one whose expiry matters; nil: the value has none
}

// Failures has the failures since the last success. Its methods may be called from any goroutine.
type Failures struct {
	mu   sync.Mutex
	last error               // guarded by mu
	seen map[string]struct{} // guarded by mu; texts, at most maxSeen
}

// maxSeen bounds the texts that Failures remembers.
const maxSeen = 64

// Add notes a failure and reports whether it is the first with this text, which is the one to log.
func (f *Failures) Add(err error) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = err
	if _, known := f.seen[err.Error()]; known {
		return false
	}
	if f.seen == nil || len(f.seen) == maxSeen {
		f.seen = map[string]struct{}{}
	}
	f.seen[err.Error()] = struct{}{}
	return true
}

// Err returns the last failure, or nil after a success.
func (f *Failures) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// Clear notes a success and reports whether it is the first since a failure.
func (f *Failures) Clear() (recovered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	recovered = f.last != nil
	f.last, f.seen = nil, nil
	return recovered
}

// Value holds what its files said when they were last usable. A [Watcher] reads them. Get and
// Status may be called from any goroutine.
type Value[T any] struct {
	files    Files[T]
	current  atomic.Pointer[version[T]]
	failures Failures

	mu   sync.Mutex // guards the rest; held during one read of the files
	used string     // digest of the contents that current was made from
	last string     // digest of those read last; "" if they could not be read
}

type version[T any] struct {
	value T
	since time.Time
}

// New reads and parses the files. Unlike later, a failure is returned, because there is no earlier
// value to keep. Each file that cannot be read is a separate error, joined.
func New[T any](files Files[T]) (*Value[T], error) {
	files.Paths = slices.Clone(files.Paths)
	v := &Value[T]{files: files}
	contents, sum, err := readAll(files.Paths)
	if err != nil {
		return nil, err
	}
	value, err := files.Parse(contents)
	if err != nil {
		return nil, err
	}
	v.current.Store(&version[T]{value, time.Now()})
	v.used, v.last = sum, sum
	return v, nil
}

// Get returns the last good value.
func (v *Value[T]) Get() T { return v.current.Load().value }

// Status describes the value for metrics and /readyz.
func (v *Value[T]) Status() Status {
	current := v.current.Load()
	status := Status{What: v.files.What, Name: v.files.Name, Err: v.failures.Err(), Since: current.since}
	if v.files.certificate != nil {
		status.Certificate = v.files.certificate(current.value)
	}
	return status
}

// read reads the files, uses a change that the read before has seen too, or at once, and reports
// it.
func (v *Value[T]) read(w *Watcher, atOnce bool) Looked {
	if atOnce {
		v.mu.Lock()
	} else if !v.mu.TryLock() { // the read before has not ended
		return Looked{}
	}
	defer v.mu.Unlock()
	changed, err := v.update(atOnce)
	looked := Looked{Files: v.files.Paths, Err: err}
	if changed {
		looked.Changed = v.files.Paths
		if v.files.OnChange != nil {
			w.changing.Lock()
			defer w.changing.Unlock()
			v.files.OnChange(v.Get())
		}
	}
	return looked
}

// update logs its error. The caller holds mu.
func (v *Value[T]) update(atOnce bool) (changed bool, err error) {
	contents, sum, err := readAll(v.files.Paths)
	fresh := sum != v.last
	v.last = sum
	switch {
	case err == nil && sum == v.used:
	case err == nil && fresh && !atOnce:
		return false, nil
	case err == nil:
		changed = true
		err = v.use(contents)
	}
	if err != nil {
		if v.failures.Add(err) {
			v.files.Logger.Error("a replaced file cannot be used; the last good one stays", slog.String("what", v.files.What), slog.Any("cause", err))
		}
		return false, err
	}
	v.used = sum
	if v.failures.Clear() {
		v.files.Logger.Info("the file can be used again", slog.String("what", v.files.What))
	}
	return changed, nil
}

// use makes a value from contents, unless it has an expired certificate in place of a valid one.
func (v *Value[T]) use(contents [][]byte) error {
	value, err := v.files.Parse(contents)
	if err != nil {
		return err
	}
	if certificate := v.files.certificate; certificate != nil {
		if err := CheckReplacement(certificate(value), certificate(v.Get())); err != nil {
			return fmt.Errorf("%s: %w", v.files.Paths[0], err)
		}
	}
	v.current.Store(&version[T]{value, time.Now()})
	return nil
}

// Looked is the result of reading files on demand.
type Looked struct {
	Files   []string // all that were read
	Changed []string // those with new contents that are in use now
	Err     error    // why others are not in use
}

// And returns l with the results of more added.
func (l Looked) And(more Looked) Looked {
	return Looked{slices.Concat(l.Files, more.Files), slices.Concat(l.Changed, more.Changed), errors.Join(l.Err, more.Err)}
}

// maxSize is the size in bytes of the largest file that is read.
const maxSize = 1 << 20

// Reasons why a file is not used. The error that wraps one of them names the file.
var (
	errEmpty      = errors.New("the file is empty")
	errTooLarge   = errors.New("the file is larger than 1 MiB")
	errNotRegular = errors.New("not a regular file")
)

// byteOrderMark is what some editors put in front of UTF-8. It is not part of the content.
var byteOrderMark = []byte("\xef\xbb\xbf")

// Read returns the content of a small file without a byte order mark. An empty file, a directory
// and a device are errors.
func Read(path string) ([]byte, error) {
	// Checked before opening, because opening a named pipe waits for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errNotRegular)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s: %w", path, errTooLarge)
	}
	data = bytes.TrimPrefix(data, byteOrderMark)
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%s: %w", path, errEmpty)
	}
	return data, nil
}

// readAll reads the files and returns their contents with a digest of them. The error has every
// file that cannot be used.
func readAll(paths []string) (contents [][]byte, sum string, err error) {
	var errs []error
	for _, path := range paths {
		data, err := Read(path)
		digest := sha256.Sum256(data)
		contents, sum, errs = append(contents, data), sum+string(digest[:]), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, "", err
	}
	return contents, sum, nil
}
