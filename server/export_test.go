package server

// SetDescriptors sets how many files and connections the process may have open.
func (c *Config) SetDescriptors(n int) { c.descriptors = n }
