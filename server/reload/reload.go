// Package reload keeps a value up to date that is read from files.
//
// It looks at what is in the files, again and again, and not at the file system's events: so it does not matter whether a
// file is written in place, renamed over the old one or, as Kubernetes does with mounted Secrets and ConfigMaps, reached
// through a symbolic link that is swapped. It keeps digests of what it has read, never the contents, and no error of its
// own quotes them.
package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// MaxSize is the size in bytes of the largest file that is read.
const MaxSize = 1 << 20

// Why a file is not used. The error that wraps one of these names the file.
var (
	ErrEmpty      = errors.New("the file is empty")
	ErrTooLarge   = errors.New("the file is larger than 1 MiB")
	ErrNotRegular = errors.New("not a regular file")
)

// Retry marks an error of parse: what the files say is right, but depends on something that may yet change, such as another
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

type digest [sha256.Size]byte

// Value is what one or more files say, as of when they last said something usable. Get may be called from anywhere.
type Value[T any] struct {
	paths    []string
	parse    func(contents [][]byte) (T, error)
	onChange func(T)
	onError  func(error)

	current atomic.Pointer[T]

	// The rest belongs to the one goroutine in Run.
	used     digest              // what current was made of
	pending  digest              // seen, and taken seriously when seen again
	tried    bool                // pending could not be parsed the first time
	refused  digest              // could not be parsed, and need not be tried again: see Retry
	reported map[string]struct{} // failures reported since all was well
}

// New reads the files and parses what is in them. Unlike later, a failure now is returned: there is no last good value to
// fall back on.
//
// parse gets the contents in the order of paths, and must not quote them in its error. It may keep them: nobody else does.
// onChange is told each new value after the first, onError what is in the way of one: each different failure once, and
// nil when the files are usable again. Both are called from Run, one at a time; either may be nil.
func New[T any](paths []string, parse func(contents [][]byte) (T, error), onChange func(T), onError func(error)) (*Value[T], error) {
	if len(paths) == 0 {
		return nil, errors.New("no file to read")
	}
	v := &Value[T]{
		paths:    slices.Clone(paths),
		parse:    parse,
		onChange: onChange,
		onError:  onError,
		reported: map[string]struct{}{},
	}
	contents, sum, err := readAll(v.paths)
	if err != nil {
		return nil, err
	}
	value, err := parse(contents)
	if err != nil {
		return nil, err
	}
	v.current.Store(&value)
	v.used = sum
	return v, nil
}

// Get returns the last good value.
func (v *Value[T]) Get() T { return *v.current.Load() }

// settling is the part of the interval after which changed files are looked at again.
const settling = 4

// Run looks at the files every interval until ctx is done, then returns nil. It must not run twice at once.
//
// A change counts when it is still the same a quarter of the interval later, so a file that is just being written is left
// alone, and one that is replaced with every look is not ignored for ever. Whoever writes slower than that should write
// another file and rename it.
func (v *Value[T]) Run(ctx context.Context, interval time.Duration) error {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
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
	contents, sum, err := readAll(v.paths)
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
		v.use(contents, sum)
	}
	return false
}

// use makes a value of contents that have been found twice.
func (v *Value[T]) use(contents [][]byte, sum digest) {
	value, err := v.parse(contents)
	if err != nil {
		if !v.tried { // one file of several may be new and the others on their way: nobody need hear of that
			v.tried = true
			return
		}
		if !errors.As(err, new(retryError)) {
			v.pending, v.refused = digest{}, sum
		}
		v.report(err)
		return
	}
	v.current.Store(&value)
	v.used, v.pending, v.refused = sum, digest{}, digest{}
	v.recovered()
	if v.onChange != nil {
		v.onChange(value)
	}
}

func (v *Value[T]) report(err error) {
	if _, known := v.reported[err.Error()]; known {
		return
	}
	if len(v.reported) == maxReported {
		clear(v.reported)
	}
	v.reported[err.Error()] = struct{}{}
	if v.onError != nil {
		v.onError(err)
	}
}

func (v *Value[T]) recovered() {
	if len(v.reported) == 0 {
		return
	}
	clear(v.reported)
	if v.onError != nil {
		v.onError(nil)
	}
}

// readAll reads the files and sums up what is in them. Every file that cannot be used is in the error.
func readAll(paths []string) ([][]byte, digest, error) {
	var (
		contents = make([][]byte, 0, len(paths))
		errs     []error
		sum      = sha256.New()
	)
	for _, path := range paths {
		data, err := read(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		contents = append(contents, data)
		// The length keeps "ab", "c" apart from "a", "bc".
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

func read(path string) ([]byte, error) {
	// Asked before opening: to open a named pipe is to wait for somebody to write to it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > MaxSize:
		return nil, fmt.Errorf("%s: %w", path, ErrTooLarge)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("%s: %w", path, ErrEmpty)
	}
	return data, nil
}
