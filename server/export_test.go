package server

// SetDescriptors sets how many files and connections the process may have open.
func (c *Config) SetDescriptors(n int) { c.descriptors = n }

// SetMemory sets how much memory the process may have.
func (c *Config) SetMemory(bytes int64) { c.memoryLimit = bytes }

// Limits returns how many connections a listener may have by default, and how many requests may
// wait for their clients.
func (c Config) Limits() (conns, requests int) {
	c.setDefaults()
	return c.MaxConns, c.maxRequests()
}
