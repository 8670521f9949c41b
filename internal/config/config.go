// Package config defines the error for an invalid setting, checks ranges, and looks up variables.
package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Error says which setting is wrong. It may be one of several joined errors.
type Error struct {
	// Field is the path of a field in server.Config, such as "Cache.TTL", or what an operator knows
	// the setting as: a flag or an environment variable.
	Field string
	// Err says what is wrong with its value, and what to do. It does not repeat a secret.
	Err error
	// MayPass reports that the setting may be right, and what it names, such as a file, is not
	// there yet.
	MayPass bool
}

func (e *Error) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Wrong returns an *Error for a field, nil if err is nil.
func Wrong(field string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Field: field, Err: err}
}

// MaxDuration bounds durations, so that sums of them do not overflow.
const MaxDuration = 365 * 24 * time.Hour

// CheckDuration returns an *Error for a field that is negative or more than MaxDuration.
func CheckDuration(field string, d time.Duration) error {
	switch {
	case d < 0:
		return Wrong(field, fmt.Errorf("%v: must not be negative", d))
	case d > MaxDuration:
		return Wrong(field, fmt.Errorf("%v: must be no more than a year", d))
	}
	return nil
}

// CheckCount returns an *Error for a field that is negative.
func CheckCount(field string, n int64) error {
	if n < 0 {
		return Wrong(field, fmt.Errorf("%d: must not be negative", n))
	}
	return nil
}

// Flatten splits joined errors, and leaves out nil.
func Flatten(errs ...error) []error {
	var all []error
	for _, err := range errs {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = append(all, Flatten(joined.Unwrap()...)...)
		} else if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// As returns the *Error in err's chain, nil if there is none.
func As(err error) *Error {
	e, _ := errors.AsType[*Error](err)
	return e
}

// Lookup returns a variable of an environment without the spaces around it, "" if it is not set.
// The last of several counts.
func Lookup(environ []string, name string) (value string) {
	for _, entry := range environ {
		if v, ok := strings.CutPrefix(entry, name+"="); ok {
			value = v
		}
	}
	return strings.TrimSpace(value)
}
