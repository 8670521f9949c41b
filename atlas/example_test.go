package atlas_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func Example() {
	em, err := emulator.Start(emulator.Config{}) // stands in for Atlas
	if err != nil {
		fmt.Println(err)
		return
	}
	defer em.Close()

	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.CloseIdleConnections()

	ctx := context.Background()
	token, err := client.CreateEphemeralToken(ctx, atlas.JWT(em.Org(0).JWT()))
	fmt.Println(token, err)
	fmt.Println("the org's token:", string(token) == em.Org(0).EphemeralToken())

	_, err = client.CreateEphemeralToken(ctx, "expired.or.forged")
	fmt.Println(err)
	if e, ok := errors.AsType[*atlas.Error](err); ok {
		fmt.Println(e.Kind == atlas.KindStatus, e.StatusCode, e.Sent)
	}
	// Output:
	// [redacted] <nil>
	// the org's token: true
	// atlas: create: error status (HTTP 401): Unauthorized
	// true 401 true
}
