// Command generate writes gen/ from the sources in proto/.
//
// It needs the Go module cache and nothing else: no network, no protoc, no schema registry. `go generate ./...` in the
// root module runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()

	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", "..", "the repository's root `folder`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return errors.New("takes no arguments")
	}

	if err := checkVersions(filepath.Join(*root, "go.mod"), filepath.Join(*root, "tools", "go.mod")); err != nil {
		return err
	}
	if err := writeImports(filepath.Join(*root, "third_party", "googleapis")); err != nil {
		return err
	}
	if err := writeSwaggerUI(ctx, filepath.Join(*root, "third_party", "swaggerui"), stderr); err != nil {
		return err
	}
	if err := bufGenerate(ctx, *root, stderr); err != nil {
		return err
	}
	return writeOpenAPI(ctx, *root, stderr)
}

// bufGenerate runs the plugins of buf.gen.yaml, whose `clean` removes what an earlier run left in gen/.
func bufGenerate(ctx context.Context, root string, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "buf", "generate")
	cmd.Dir = root
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("buf generate: %w", err)
	}
	return nil
}
