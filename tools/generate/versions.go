package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/mod/modfile"
)

// inStep lists the modules that both the generators (tools/go.mod) and the generated code (the root
// go.mod) use. Their versions must be equal, so that code is generated for the version it links
// with.
var inStep = []string{
	"github.com/grpc-ecosystem/grpc-gateway/v2",
	"google.golang.org/genproto/googleapis/api",
	"google.golang.org/genproto/googleapis/rpc",
	"google.golang.org/protobuf",
}

// checkVersions reports every module of inStep that the two go.mod files require in different
// versions.
func checkVersions(rootMod, toolsMod string) error {
	root, err := requirements(rootMod)
	if err != nil {
		return err
	}
	tools, err := requirements(toolsMod)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range inStep {
		if root[path] == "" || root[path] != tools[path] {
			errs = append(errs, fmt.Errorf("%s: %s requires %q, %s requires %q: make them the same",
				path, rootMod, root[path], toolsMod, tools[path]))
		}
	}
	return errors.Join(errs...)
}

// requirements returns module path to version, as one go.mod file states it.
func requirements(name string) (map[string]string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	mod, err := modfile.ParseLax(name, data, nil)
	if err != nil {
		return nil, err
	}
	versions := make(map[string]string, len(mod.Require))
	for _, r := range mod.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions, nil
}
