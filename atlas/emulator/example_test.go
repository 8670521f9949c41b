package emulator_test

import (
	"crypto/tls"
	"fmt"
	"net/http"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func ExampleEmulator_Inject() {
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		panic(err)
	}
	defer em.Close()
	em.Inject(emulator.Fault{
		On: emulator.Create, Times: 1, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"7"}},
	})

	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: em.CertPool()}}
	defer transport.CloseIdleConnections()
	for range 2 {
		request, _ := http.NewRequest(http.MethodPost, em.URL()+"/ephemeral-token", http.NoBody)
		request.Header.Set("Authorization", "JWT "+em.Org(0).JWT())
		response, err := transport.RoundTrip(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(response.StatusCode, response.Header.Get("Retry-After"))
		_ = response.Body.Close()
	}
	// Output:
	// 429 7
	// 201
}
