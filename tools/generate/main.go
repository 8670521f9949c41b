// Command generate writes gen/ from the sources in proto/.
//
// It needs the Go module cache and nothing else: no network, no protoc, no schema registry. `go
// generate ./...` in the root module runs it. The first run compiles buf, which takes minutes.
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
	"time"
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
	scratch, err := os.MkdirTemp("", "generate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	g := generator{root: *root, scratch: scratch, stderr: stderr}
	return g.run(ctx)
}

// generator generates everything that is committed.
type generator struct {
	root    string
	scratch string // the folder that buf writes to
	stderr  io.Writer
}

// tools are what buf.gen.yaml runs. Go compiles each on first use.
var tools = []string{"buf", "protoc-gen-go", "protoc-gen-go-grpc", "protoc-gen-grpc-gateway", "protoc-gen-openapiv3"}

// run takes one step after the other. What a failed step should have replaced is still there.
func (g *generator) run(ctx context.Context) error {
	type step struct {
		name string
		run  func(context.Context) error
	}
	steps := []step{
		{"compare the versions in go.mod and tools/go.mod", g.checkVersions},
		{"write third_party/googleapis", g.writeImports},
		{"write third_party/swaggerui", g.writeSwaggerUI},
	}
	for _, tool := range tools {
		steps = append(steps, step{"compile " + tool, func(ctx context.Context) error { return g.compile(ctx, tool) }})
	}
	steps = append(steps,
		step{"generate Go code from proto/", g.writeGo},
		step{"write gen/openapi", g.writeOpenAPI},
	)
	for i, s := range steps {
		fmt.Fprintf(g.stderr, "generate: %d/%d %s\n", i+1, len(steps), s.name)
		done := make(chan struct{})
		go g.reportWaiting(done)
		err := s.run(ctx)
		close(done)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// reportWaiting shows that a long step is still running.
func (g *generator) reportWaiting(done <-chan struct{}) {
	start := time.Now()
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			fmt.Fprintf(g.stderr, "generate: still running after %d s\n", int(time.Since(start).Seconds()))
		}
	}
}

func (g *generator) checkVersions(context.Context) error {
	return checkVersions(filepath.Join(g.root, "go.mod"), filepath.Join(g.root, "tools", "go.mod"))
}

func (g *generator) writeImports(context.Context) error {
	return writeImports(filepath.Join(g.root, "third_party", "googleapis"))
}

func (g *generator) writeSwaggerUI(ctx context.Context) error {
	return writeSwaggerUI(ctx, filepath.Join(g.root, "third_party", "swaggerui"), g.stderr)
}

func (g *generator) compile(ctx context.Context, tool string) error {
	_, err := output(exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "-n", tool), g.root, g.stderr) //nolint:gosec // one of tools
	return err
}

// writeGo runs buf's plugins and replaces the Go code in gen/. Their OpenAPI document stays in
// scratch for writeOpenAPI, which compiles this Go code.
func (g *generator) writeGo(ctx context.Context) error {
	buf := exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "buf", "generate", "-o", g.scratch) //nolint:gosec // made by MkdirTemp
	if _, err := output(buf, g.root, g.stderr); err != nil {
		return err
	}
	for _, dir := range []string{"forsta", "gateway"} {
		to := filepath.Join(g.root, "gen", dir)
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if err := os.CopyFS(to, os.DirFS(filepath.Join(g.scratch, "gen", dir))); err != nil {
			return err
		}
	}
	return nil
}
