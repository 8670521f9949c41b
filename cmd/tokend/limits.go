package main

// limitFlags bound what callers can take of one replica.
type limitFlags struct {
	MaxConnections, CallerRate int
}

func (f *limitFlags) declare(flags flags) {
	flags = flags.about(aboutLimits)
	flags.count(&f.MaxConnections, "max-connections", "0", "How many connections gRPC and REST may each have open, half of them from one address; 0: as many as the limit of open files allows for, and no more than 10000.")
	flags.count(&f.CallerRate, "caller-rate", "2000", "How many calls a second one caller may cost Atlas; what is shared or remembered does not count. 0: no limit.")
}

func (f *limitFlags) open(s *setup) {
	s.MaxConns, s.CallerRate = f.MaxConnections, f.CallerRate
}
