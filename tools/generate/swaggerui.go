package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/swaggest/swgui/v5/static"
)

// swaggerUI lists the files of the module that the API page needs.
var swaggerUI = []string{"swagger-ui-bundle.js.gz", "swagger-ui.css.gz", "favicon-32x32.png"}

// writeSwaggerUI copies those files and the licence from the Go module into dir.
func writeSwaggerUI(ctx context.Context, dir string, stderr io.Writer) error {
	for _, name := range swaggerUI {
		content, err := fs.ReadFile(static.FS, name)
		if err != nil {
			return fmt.Errorf("Swagger UI: %w", err) //nolint:staticcheck // a name
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	found, err := output(exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/swaggest/swgui"), ".", stderr)
	if err != nil {
		return err
	}
	licence, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(found)), "LICENSE"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "LICENSE"), licence, 0o644)
}
