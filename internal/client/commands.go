// Package client provides the commands tokend create and tokend delete, which call a running
// tokend.
package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// Exit statuses besides 0, those of sysexits.h.
const (
	exitUsage       = 64 // the command line is wrong
	exitUnreachable = 69 // no tokend answers
	exitFailed      = 70 // the call failed, and a repeat would fail as well
	exitRetry       = 75 // the call failed, and a repeat after a delay may succeed
	exitUnknown     = 76 // a delete failed, but the token may have been deleted
	exitDenied      = 77 // the credential is missing, was refused or does not permit the call
)

const help = `

The JWT is read from $ATLAS_JWT or --jwt-file. Give none where your client certificate identifies you.

Exit status:
  0   done
  64  the command line is wrong
  69  no tokend answers at --addr
  70  the call failed; it would fail again
  75  the call failed; try again after the printed delay
  76  the delete failed, but the token may have been deleted: do not repeat it blindly
  77  the credential is missing, was refused or does not permit the call`

// Commands returns the commands create and delete. The JWT is that of $ATLAS_JWT, if it is set.
func Commands(jwt string) []*cobra.Command {
	return []*cobra.Command{
		newCommand(jwt, "create", "Get the org's ephemeral token from a running tokend.", "It prints the token.",
			func(ctx context.Context, tokens ephemeraltokenv1.EphemeralTokenServiceClient, opts ...grpc.CallOption) (result, error) {
				resp, err := tokens.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{}, opts...)
				return result{Token: resp.GetToken()}, err
			}),
		newCommand(jwt, "delete", "Delete the org's ephemeral token through a running tokend.", "It succeeds if there is no token.",
			func(ctx context.Context, tokens ephemeraltokenv1.EphemeralTokenServiceClient, opts ...grpc.CallOption) (result, error) {
				_, err := tokens.DeleteToken(ctx, &ephemeraltokenv1.DeleteTokenRequest{}, opts...)
				return result{Deleted: true}, err
			}),
	}
}

// result is the result of a command as JSON.
type result struct {
	Token       string `json:"token,omitempty"`
	Deleted     bool   `json:"deleted,omitempty"`
	CacheStatus string `json:"cacheStatus,omitempty"`
	RequestID   string `json:"requestId,omitempty"`
}

// rpc makes the call of a command.
type rpc func(context.Context, ephemeraltokenv1.EphemeralTokenServiceClient, ...grpc.CallOption) (result, error)

func newCommand(jwt, name, short, long string, call rpc) *cobra.Command {
	var (
		o      = options{JWT: jwt}
		asJSON bool
	)
	c := &cobra.Command{
		Use: name, Short: short, Long: short + " " + long + help,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			conn, err := o.connect()
			if err != nil {
				return &Error{Text: name + ": " + err.Error(), status: exitUsage}
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(c.Context(), o.Timeout)
			defer cancel()
			var header, trailer metadata.MD
			// A call fails at once if there is no connection.
			done, err := call(ctx, ephemeraltokenv1.NewEphemeralTokenServiceClient(conn), grpc.WaitForReady(false), grpc.Header(&header), grpc.Trailer(&trailer))
			if err != nil {
				failed := o.explain(name, err, first(trailer, requestID))
				if asJSON {
					if err := printJSON(c.OutOrStdout(), failed); err != nil {
						return err
					}
				}
				return failed
			}
			done.CacheStatus, done.RequestID = first(header, "cache-status"), first(header, requestID)
			if asJSON {
				return printJSON(c.OutOrStdout(), done)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), cmp.Or(done.Token, "deleted"))
			return err
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.Addr, "addr", "127.0.0.1:9090", "gRPC address of tokend, `HOST:PORT` or unix:/PATH")
	flags.StringVar(&o.CAFile, "ca-file", "", "authorities that may have signed tokend's certificate, a PEM `FILE` (default: those of the system)")
	flags.StringVar(&o.CertFile, "cert-file", "", "your client certificate, a PEM `FILE`")
	flags.StringVar(&o.KeyFile, "key-file", "", "its private key, a PEM `FILE`")
	flags.BoolVar(&o.Plaintext, "plaintext", false, "connect without TLS, as to tokend dev")
	flags.StringVar(&o.JWTFile, "jwt-file", "", "`FILE` with your Atlas JWT or OIDC token, instead of $ATLAS_JWT")
	flags.DurationVar(&o.Timeout, "timeout", 10*time.Second, "how long to wait, retries included")
	flags.BoolVar(&asJSON, "json", false, "print the result, or the error, as JSON")
	return c
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

const requestID = "x-request-id"

// first returns the first value of a key, made printable.
func first(md metadata.MD, key string) string {
	if values := md.Get(key); len(values) > 0 {
		return printable(values[0])
	}
	return ""
}

// printable makes text from the network safe for a terminal, and short.
func printable(text string) string {
	const longest = 500
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, " "))
}
