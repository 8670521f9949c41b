package sink

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
)

// File is a file that a sink appends lines to, and closes. It can be opened again after it was
// renamed.
type File struct {
	path string
	file *os.File                // used by the sink's goroutine only
	next atomic.Pointer[os.File] // to go on with; nil if there is none
}

// OpenFile opens a file, or a pipe that has a reader, for a sink. It makes the file if there is
// none.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	err := f.Reopen()
	return f, err
}

// Reopen makes the next line go into the file that has the name then, and makes that if there is
// none. If it fails, lines go on into the file before.
func (f *File) Reopen() error {
	// Without O_NONBLOCK, opening a pipe waits for a reader.
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("%w: the pipe has no reader", err)
	}
	if err != nil {
		return err
	}
	if unused := f.next.Swap(file); unused != nil {
		_ = unused.Close()
	}
	return nil
}

// advance takes the file that Reopen has opened into use, and reports whether there is one.
func (f *File) advance() bool {
	next := f.next.Swap(nil)
	if next == nil {
		return false
	}
	if f.file != nil {
		_ = f.file.Close() // it has no buffer
	}
	f.file = next
	return true
}

// endsTorn reports whether the file ends in the middle of a line, as one does whose writer was
// killed or found the disk full.
func (f *File) endsTorn() bool {
	info, err := f.file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	reader, err := os.Open(f.path)
	if err != nil {
		return true // an empty line does less harm than two records in one
	}
	defer reader.Close()
	var last [1]byte
	_, err = reader.ReadAt(last[:], info.Size()-1)
	return err != nil || last[0] != '\n'
}

// Write implements io.Writer, for the sink.
func (f *File) Write(line []byte) (int, error) { return f.file.Write(line) }

func (f *File) close() {
	if f.advance(); f.file != nil {
		_ = f.file.Close()
	}
}
