package spiffe

import (
	"errors"
	"net/url"
	"strings"
)

// CheckAddr reports an address that is not a socket file's, unix:///path. The Workload API can be on a TCP port as well: there
// everybody on the machine is the same workload, and the private key goes in plaintext, so that is not for here.
func CheckAddr(addr string) error {
	_, err := socketOf(addr)
	return err
}

// socketOf is the path of the socket.
func socketOf(addr string) (string, error) {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "unix" || u.User != nil || u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("must be unix:// and the absolute path of the agent's socket, such as unix:///run/spire/agent.sock")
	}
	return u.Path, nil
}
