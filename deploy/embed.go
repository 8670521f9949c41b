// Package deploy provides the files of this directory that Go programs use.
package deploy

import _ "embed"

// ServiceConfig is the gRPC service config that clients should use.
//
//go:embed service-config.json
var ServiceConfig string
