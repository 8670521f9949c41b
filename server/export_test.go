package server

import (
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/server/tokencache"
)

// SetReloadInterval makes the server look at its TLS files more often than anybody would want it to.
func (c *Config) SetReloadInterval(d time.Duration) { c.reloadInterval = d }

// SetTokens puts something else in the place of the cache that Config.Cache describes.
func (c *Config) SetTokens(tokens func(tokencache.Atlas) Tokens) { c.newTokens = tokens }

// SetConnectionAge makes gRPC connections end sooner than after half an hour.
func (c *Config) SetConnectionAge(d time.Duration) { c.connectionAge = d }
