// Package client provides the commands tokend create and tokend delete, which call a running
// tokend.
package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
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
			func(ctx context.Context, conn *connection) (any, string, error) {
				var header metadata.MD
				resp, err := conn.tokens.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{}, conn.options(&header)...)
				if err != nil {
					return nil, "", err
				}
				return created{resp.GetToken(), first(header, "cache-status"), first(header, "x-request-id")}, resp.GetToken(), nil
			}),
		newCommand(jwt, "delete", "Delete the org's ephemeral token through a running tokend.", "It succeeds if there is no token.",
			func(ctx context.Context, conn *connection) (any, string, error) {
				var header metadata.MD
				_, err := conn.tokens.DeleteToken(ctx, &ephemeraltokenv1.DeleteTokenRequest{}, conn.options(&header)...)
				return deleted{true, first(header, "x-request-id")}, "deleted", err
			}),
	}
}

// The results as JSON.
type (
	created struct {
		Token       string `json:"token"`
		CacheStatus string `json:"cacheStatus,omitempty"`
		RequestID   string `json:"requestId,omitempty"`
	}
	deleted struct {
		Deleted   bool   `json:"deleted"`
		RequestID string `json:"requestId,omitempty"`
	}
)

// call makes a call and returns its result, as JSON and as text.
type call func(ctx context.Context, conn *connection) (result any, text string, err error)

func newCommand(jwt, name, short, long string, do call) *cobra.Command {
	var (
		s      = settings{JWT: jwt}
		asJSON bool
	)
	c := &cobra.Command{
		Use: name, Short: short, Long: short + " " + long + help,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			conn, err := s.connect()
			if err != nil {
				return &Error{Text: name + ": " + err.Error(), status: exitUsage}
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(c.Context(), s.Timeout)
			defer cancel()
			result, text, err := do(ctx, conn)
			if err != nil {
				failed := conn.explain(name, err)
				if asJSON {
					if err := printJSON(c.OutOrStdout(), failed); err != nil {
						return err
					}
				}
				return failed
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), result)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), text)
			return err
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&s.Addr, "addr", "127.0.0.1:9090", "gRPC address of tokend, `HOST:PORT` or unix:/PATH")
	flags.StringVar(&s.CAFile, "ca-file", "", "authorities that may have signed tokend's certificate, a PEM `FILE` (default: those of the system)")
	flags.StringVar(&s.CertFile, "cert-file", "", "your client certificate, a PEM `FILE`")
	flags.StringVar(&s.KeyFile, "key-file", "", "its private key, a PEM `FILE`")
	flags.BoolVar(&s.Plaintext, "plaintext", false, "connect without TLS, as to tokend dev")
	flags.StringVar(&s.JWTFile, "jwt-file", "", "`FILE` with your Atlas JWT or OIDC token, instead of $ATLAS_JWT")
	flags.DurationVar(&s.Timeout, "timeout", 10*time.Second, "how long to wait, retries included")
	flags.BoolVar(&asJSON, "json", false, "print the result, or the error, as JSON")
	return c
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

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
