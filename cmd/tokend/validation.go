package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// validationErrors is everything wrong with what the user asked for, all of it, so that it is mended in one go.
type validationErrors []error

func (v validationErrors) Error() string { return errors.Join(v...).Error() }

func (v validationErrors) print(w io.Writer) {
	if len(v) == 1 {
		fmt.Fprintf(w, "tokend: %v\n", v[0])
		return
	}
	fmt.Fprintf(w, "tokend: %d errors, nothing was started:\n", len(v))
	for _, err := range v {
		fmt.Fprintf(w, "  %v\n", err)
	}
}

// check adds a command's own validation errors to those of parsing and returns them all, each once, nil if there are none.
func (in *invocation) check(own ...error) error {
	for _, err := range flatten(own...) {
		if !slices.ContainsFunc(in.invalid, func(known error) bool { return known.Error() == err.Error() }) {
			in.invalid = append(in.invalid, err)
		}
	}
	if len(in.invalid) > 0 {
		return in.invalid
	}
	return nil
}

// flatten drops the nil errors and takes joined ones apart, so that each validation error is a line of its own.
func flatten(errs ...error) []error {
	var all []error
	for _, err := range errs {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = append(all, flatten(joined.Unwrap()...)...)
		} else if err != nil {
			all = append(all, err)
		}
	}
	return all
}
