package reload

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxSize is the size in bytes of the largest file that is read.
const maxSize = 1 << 20

// Why a file is not used. The error that wraps one of these names the file.
var (
	errEmpty      = errors.New("the file is empty")
	errTooLarge   = errors.New("the file is larger than 1 MiB")
	errNotRegular = errors.New("not a regular file")
)

type digest [sha256.Size]byte

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
		return nil, fmt.Errorf("%s: %w", path, errNotRegular)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxSize:
		return nil, fmt.Errorf("%s: %w", path, errTooLarge)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("%s: %w", path, errEmpty)
	}
	return data, nil
}
