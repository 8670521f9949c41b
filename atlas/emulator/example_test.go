package emulator_test

import (
	"fmt"
	"net/http"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func Example() {
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		panic(err)
	}
	defer em.Close()
	client, url, jwt := em.Client(), em.URL(), em.Org(0).JWT()

	request, _ := http.NewRequest(http.MethodPost, url+"/ephemeral-token", http.NoBody)
	request.Header.Set("Authorization", "JWT "+jwt)
	response, err := client.Do(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer response.Body.Close()
	fmt.Println(response.Status, em.Calls(emulator.Create), len(em.Tokens()))
	// Output: 201 Created 1 1
}

func ExampleEmulator_Inject() {
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		panic(err)
	}
	defer em.Close()
	em.Inject(emulator.Fault{
		On: emulator.Create, Times: 1, Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"7"}},
	})

	for range 2 {
		request, _ := http.NewRequest(http.MethodPost, em.URL()+"/ephemeral-token", http.NoBody)
		request.Header.Set("Authorization", "JWT "+em.Org(0).JWT())
		response, err := em.Client().Do(request)
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
