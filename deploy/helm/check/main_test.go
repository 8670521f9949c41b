package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	const good = "# a comment\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n"
	if n, err := check(strings.NewReader(good)); n != 1 || err != nil {
		t.Errorf("%d objects, %v", n, err)
	}
	for name, bad := range map[string]string{
		"unknown field": strings.Replace(good, "port:", "prot:", 1),
		"unknown kind":  strings.Replace(good, "Service", "Servise", 1),
		"wrong type":    strings.Replace(good, "port: 1", "port: a", 1),
	} {
		if _, err := check(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is not found", name)
		}
	}
}
