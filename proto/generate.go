// Package proto holds the sources of the API. `go generate ./...` writes its Go code to gen/.
package proto

//go:generate go -C ../tools run ./generate -root ..
