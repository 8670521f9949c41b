// Package proto holds the sources of the API. Its Go code is in gen/; `go generate ./...` writes that anew.
package proto

//go:generate go -C ../tools run ./generate -root ..
