// Package swaggerui has the files of Swagger UI (Apache-2.0) that the API's page is made of. Those whose names end in .gz are
// compressed.
package swaggerui

import "embed"

// FS has the files under their own names.
//
//go:embed *.png *.gz
var FS embed.FS
