package setup

import "fmt"

// Describe describes the effect of the settings, one line for each aspect.
func (s *Setup) Describe() string {
	return s.DescribeCallers() + s.describeCertificates() + s.describeCache() + s.describeTraces()
}

// DescribeCallers describes which callers may call what.
func (s *Setup) DescribeCallers() string {
	switch {
	case s.Policy != nil:
		return s.Policy.String()
	case s.Settings.UserauthtokenFile != "":
		return "Every caller with a verified client certificate may call both methods, as profile " + DefaultProfile + ".\n"
	}
	return "Every caller with an Atlas JWT may call both methods; the JWT is passed on, and Atlas decides.\n"
}

func (s *Setup) describeCertificates() string {
	switch {
	case s.Config.TLS.ClientCAs == nil:
		return "Client certificates are not asked for.\n"
	case s.Config.Auth.AllowsWithoutCertificate():
		return "Client certificates are verified and not required: the policy has rules for callers without one.\n"
	}
	return "Client certificates are required.\n"
}

// oneReplicaOnly cannot be checked from inside one process.
const oneReplicaOnly = "That is right for one replica only: another one would go on serving a token that was deleted here. Set --cache-redis-url for more."

func (s *Setup) describeCache() string {
	switch cfg := s.Config.Cache; {
	case cfg.TTL == 0:
		return "Calls for the same token are shared. No token is cached.\n"
	case cfg.Redis != nil:
		return fmt.Sprintf("Tokens are cached for %v in Redis, for all replicas.\n", cfg.TTL)
	default:
		return fmt.Sprintf("Tokens are cached for %v in this process. %s\n", cfg.TTL, oneReplicaOnly)
	}
}

func (s *Setup) describeTraces() string {
	if s.tracer == nil {
		return ""
	}
	return "Traces go to " + s.tracer.endpoint + " over OTLP (" + s.tracer.protocol + ").\n"
}
