// Package tokenclient helps Go programs to call the ephemeral-token service: options for the
// connection, credentials for the calls, and the reason of an error. It links grpc-go and protobuf
// only.
package tokenclient

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health" // the service config asks for health checks, which are in this package
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/deploy"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// Domain is the domain of the service's errors in google.rpc.ErrorInfo.
const Domain = "ephemeraltoken.forsta.io"

// DialOptions returns the recommended options of a connection. Calls go round robin to the replicas
// that report themselves healthy, and wait until there is one. CreateToken is tried up to three
// times if the service is unavailable, DeleteToken once. No call takes longer than 30 seconds.
//
// Use a target such as dns:///tokend.internal:9090, so that grpc-go finds all replicas, and add the
// transport credentials.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultServiceConfig(deploy.ServiceConfig)}
}

// JWT sends a JWT with every call: your Atlas JWT, or an OIDC token where the service holds the
// Atlas identity. Pass it to [grpc.WithPerRPCCredentials] or [grpc.PerRPCCredentials].
type JWT struct {
	// Source returns the JWT to send. It is called for each call, so that it can return a new JWT
	// before the last one expires; it should cache. It must be safe for concurrent use.
	Source func(context.Context) (string, error)
	// AllowPlaintext permits connections without TLS, for loopback or inside a mesh. By default
	// grpc-go refuses to send a JWT over them.
	AllowPlaintext bool
}

var _ credentials.PerRPCCredentials = JWT{}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (j JWT) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	if len(uri) > 0 && strings.HasSuffix(uri[0], "/grpc.health.v1.Health") {
		// Health checks need no credential. If the source failed for them, the connection would never
		// be ready, and calls would wait for it instead of failing with the source's error.
		return nil, nil
	}
	jwt, err := j.Source(ctx)
	if err != nil {
		return nil, err
	}
	jwt = strings.TrimSpace(jwt) // files end with a newline
	if jwt == "" || strings.ContainsFunc(jwt, isNotBase64URL) {
		return nil, errors.New("the source of the JWT returned something else: it has to be a JWT alone, without a scheme or quotes")
	}
	return map[string]string{"authorization": "Bearer " + jwt}, nil
}

// isNotBase64URL reports whether a character cannot be in a JWT.
func isNotBase64URL(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.=", r))
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (j JWT) RequireTransportSecurity() bool { return !j.AllowPlaintext }

// Reason returns why a call failed. It is ERROR_REASON_UNSPECIFIED if err is nil, did not come from
// the service, such as a failed connection, or has a reason that this version of the package does
// not know: then branch on the code that [status.Code] returns.
func Reason(err error) ephemeraltokenv1.ErrorReason {
	if info := Info(err); info != nil {
		return ephemeraltokenv1.ErrorReason(ephemeraltokenv1.ErrorReason_value["ERROR_REASON_"+info.GetReason()])
	}
	return ephemeraltokenv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}

// Info returns the service's ErrorInfo in err, or nil.
func Info(err error) *errdetails.ErrorInfo {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info
		}
	}
	return nil
}

// RetryDelay returns how long to wait before the call is tried again. It returns false if the
// service did not ask for a retry: it fails again, or, after a delete, may do harm.
func RetryDelay(err error) (time.Duration, bool) {
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

// MayHaveDeleted reports whether a failed DeleteToken may have deleted the token. Do not repeat it
// blindly then: a late repeat could delete a token that was created in the meantime.
func MayHaveDeleted(err error) bool {
	return Reason(err) == ephemeraltokenv1.ErrorReason_ERROR_REASON_DELETE_OUTCOME_UNKNOWN ||
		Info(err).GetMetadata()["outcome"] == "unknown"
}
