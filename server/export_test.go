package server

import "time"

// SetReloadInterval makes the server look at its TLS files more often than anybody would want it to.
func (c *Config) SetReloadInterval(d time.Duration) { c.reloadInterval = d }

// SetCache puts another cache in the place of the one that Config.Cache describes.
func (c *Config) SetCache(cache Cache) { c.cache = cache }

// SetConnectionAge makes gRPC connections end sooner than after half an hour.
func (c *Config) SetConnectionAge(d time.Duration) { c.connectionAge = d }
