// Package reload keeps values up to date that are made from files: certificates, secrets, the
// policy. It also shows the state of certificates that come from a SPIFFE agent.
//
// It reads the files again and again instead of watching file system events, so a file may be
// written in place, renamed over the old one or, as Kubernetes does with mounted Secrets and
// ConfigMaps, reached through a symbolic link that is swapped. It keeps digests of what it has
// read, never the contents, and neither its errors nor its log quote them.
package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
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
	// quote them in its error.
	Parse func(contents [][]byte) (T, error)
	// OnChange, if set, is called with each new value after the first, one at a time.
	OnChange func(T)
	// Logger gets one line for each different reason why new files cannot be used, and one when
	// they can be used again. Its attributes name the files.
	Logger *slog.Logger
}

// Retry marks an error of Parse that depends on something besides the files, such as the time or
// another file. Without the mark, the same contents are not parsed again. It does not change the
// error's text.
func Retry(err error) error {
	if err == nil {
		return nil
	}
	return retryError{err}
}

// IsRetry reports whether Retry has marked an error.
func IsRetry(err error) bool { return errors.As(err, new(retryError)) }

type retryError struct{ error }

func (e retryError) Unwrap() error { return e.error }

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

// Value holds what its files said when they were last usable. Get and Status may be called from any
// goroutine.
type Value[T any] struct {
	files    Files[T]
	current  atomic.Pointer[version[T]]
	failures Failures

	mu      sync.Mutex // guards the rest; held during one read of the files
	used    digest     // of the contents that current was made from
	pending digest     // seen once; used if seen again
	tried   bool       // pending could not be parsed the first time
	refused digest     // could not be parsed and is not tried again; see Retry
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
	v.used = sum
	return v, nil
}

// Get returns the last good value.
func (v *Value[T]) Get() T { return v.current.Load().value }

// Status describes the value for metrics and /readyz.
func (v *Value[T]) Status() Status {
	return Status{What: v.files.What, Name: v.files.Name, Err: v.failures.Err(), Since: v.current.Load().since}
}

// settling is the part of the interval after which changed files are read again.
const settling = 4

// Run reads the files every interval until ctx is done. It must not run twice at once.
//
// A change is used when it is still there a quarter of the interval later, so a file that is being
// written is left alone, and one that changes with every read is not ignored forever. A writer
// slower than that should write another file and rename it.
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

// look reads the files once and reports whether there is a change that has to be seen again before
// it is used.
func (v *Value[T]) look() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	contents, sum, err := v.read()
	switch {
	case err != nil, sum == v.used:
	case sum == v.refused:
		v.pending = digest{}
	case sum != v.pending:
		v.pending, v.tried = sum, false
		return true
	default:
		// The first failure is not reported: of several files, one may be new and the others about
		// to be written.
		if v.use(contents, sum) != nil {
			v.tried = true
		}
	}
	return false
}

// read reads the files, and reports if they cannot be read or are those in use. The caller holds
// mu.
func (v *Value[T]) read() (contents [][]byte, sum digest, err error) {
	contents, sum, err = readAll(v.files.Paths)
	switch {
	case err != nil:
		v.pending = digest{}
		v.fail(err)
	case sum == v.used:
		v.pending, v.refused = digest{}, digest{}
		v.succeed()
	}
	return contents, sum, err
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

// Look reads the files now and uses new contents at once, without waiting whether they change
// again. Contents that could not be used before are tried again.
func (v *Value[T]) Look() Looked {
	v.mu.Lock()
	defer v.mu.Unlock()
	looked := Looked{Files: v.files.Paths}
	contents, sum, err := v.read()
	if err == nil && sum != v.used {
		v.tried = true
		if err = v.use(contents, sum); err == nil {
			looked.Changed = v.files.Paths
		}
	}
	looked.Err = err
	return looked
}

// use makes a value from contents that do not change any more.
func (v *Value[T]) use(contents [][]byte, sum digest) error {
	value, err := v.files.Parse(contents)
	if err != nil {
		if !v.tried {
			return err
		}
		if !IsRetry(err) {
			v.pending, v.refused = digest{}, sum
		}
		v.fail(err)
		return err
	}
	v.current.Store(&version[T]{value, time.Now()})
	v.used, v.pending, v.refused = sum, digest{}, digest{}
	v.succeed()
	if v.files.OnChange != nil {
		v.files.OnChange(value)
	}
	return nil
}

func (v *Value[T]) fail(err error) {
	if v.failures.Add(err) {
		v.files.Logger.Error("a replaced file cannot be used; the last good one stays", slog.String("what", v.files.What), slog.Any("cause", err))
	}
}

func (v *Value[T]) succeed() {
	if v.failures.Clear() {
		v.files.Logger.Info("the file can be used again", slog.String("what", v.files.What))
	}
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

type digest [sha256.Size]byte

// readAll reads the files and returns their contents with a digest over all of them. The error has
// every file that cannot be used.
func readAll(paths []string) ([][]byte, digest, error) {
	var (
		contents = make([][]byte, 0, len(paths))
		errs     []error
		sum      = sha256.New()
	)
	for _, path := range paths {
		data, err := Read(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		contents = append(contents, data)
		// The length distinguishes "ab", "c" from "a", "bc".
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(data)))
		sum.Write(length[:])
		sum.Write(data)
	}
	if len(errs) > 0 {
		return nil, digest{}, errors.Join(errs...)
	}
	return contents, digest(sum.Sum(nil)), nil
}
