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
