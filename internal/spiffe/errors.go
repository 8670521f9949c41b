package spiffe

import "errors"

// Why there is no X.509-SVID. The error that wraps one of these says more.
var (
	// ErrNotRegistered: the agent does not know this process.
	ErrNotRegistered = errors.New("the SPIFFE agent has no registration entry for this workload")
	// ErrUnreachable: nobody listens there, or the agent has hung up.
	ErrUnreachable = errors.New("the SPIFFE agent cannot be reached")
	// ErrNoAnswer: somebody listens there, and says nothing in time.
	ErrNoAnswer = errors.New("the SPIFFE agent does not answer")
	// ErrNoAgent: whoever answers is no SPIFFE agent.
	ErrNoAgent = errors.New("what listens there does not speak the SPIFFE Workload API")
	// ErrUnusable: the agent gives something that no server can use.
	ErrUnusable = errors.New("what the SPIFFE agent gives cannot be used")
	// ErrFailed: the agent answers with an error of another kind.
	ErrFailed = errors.New("the SPIFFE agent fails")
)
