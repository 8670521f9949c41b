package server

import (
	"net"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// SetTokens puts something else in the place of the cache that Config.Cache describes.
func (c *Config) SetTokens(tokens func(tokencache.Atlas) Tokens) { c.newTokens = tokens }

// SetConnectionAge makes gRPC connections end sooner than after half an hour.
func (c *Config) SetConnectionAge(d time.Duration) { c.connectionAge = d }

// SetListen binds addresses elsewhere than in the kernel.
func (c *Config) SetListen(bind func(addr string) (net.Listener, error)) {
	c.listen = func(addr string, limits listen.Limits) (*listen.Listener, error) {
		l, err := bind(addr)
		if err != nil {
			return nil, err
		}
		return listen.Track(l, limits), nil
	}
}

// SetDescriptors makes the process one that may have so many files and connections open.
func (c *Config) SetDescriptors(n int) { c.descriptors = n }
