package main

import (
	"fmt"
	"os"

	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// imported are the files that proto/ imports and buf does not provide, and those that a client
// needs to read an error's details.
var imported = []protoreflect.FileDescriptor{
	annotations.File_google_api_annotations_proto,
	annotations.File_google_api_http_proto,
	errdetails.File_google_rpc_error_details_proto,
	status.File_google_rpc_status_proto,
}

// writeImports prints the imported files into dir from the descriptors in the Go modules, so that
// proto/ is compiled against the versions that the generated code links with.
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
