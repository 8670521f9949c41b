package main

import (
	"fmt"
	"os"

	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// imported are the files that proto/ imports and that buf does not bring along.
var imported = []protoreflect.FileDescriptor{
	annotations.File_google_api_annotations_proto,
	annotations.File_google_api_http_proto,
}

// writeImports prints the imported files into dir from the descriptors that the Go module carries, so that what is
// compiled against here is what the generated code links with.
func writeImports(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	var printer protoprint.Printer
	if err := printer.PrintProtosToFileSystem(imported, dir); err != nil {
		return fmt.Errorf("printing imports: %w", err)
	}
	return nil
}
