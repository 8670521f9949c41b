package main

import (
	"fmt"
	"time"
)

// transport is how callers call.
type transport string

const (
	overGRPC transport = "gRPC"
	overREST transport = "REST"
)

// method is how a case is measured.
type method string

const (
	underLoad method = "load"  // callers call as fast as they are answered
	idle      method = "idle"  // connections are open, and nobody calls
	starting  method = "start" // from the start of the program until it is ready
)

// testCase is one thing that is measured of tokend and of what is put beside it.
type testCase struct {
	name          string
	variant       string // how it differs from the case of that name in the main table; empty: it is that
	over          transport
	how           method
	callers       int
	oneCredential bool // all callers have the same; else each its own
	mtls          bool
	latency       time.Duration // Atlas's
	compared      metric        // by which the servers are compared

	tokend server
	peers  []server
}

// cases are the rows of the main table. Its numbers are of 64 callers, of plaintext and of an Atlas
// that answers at once, unless the case says otherwise.
func cases() []testCase {
	const callers = 64
	asksFacade := []server{facade("facade as commonly written"), facade("the same, HTTP/1.1 to Atlas", "-http1")}
	return []testCase{
		{
			name: "gRPC, remembered in memory", over: overGRPC, how: underLoad, callers: callers, compared: cpuPerCall,
			tokend: tokend("--cache-ttl", "1h"), peers: []server{echo("bare grpc-go echo")},
		},
		{
			name: "REST, remembered in memory", over: overREST, how: underLoad, callers: callers, compared: cpuPerCall,
			tokend: tokend("--cache-ttl", "1h"), peers: []server{echo("bare gateway echo, in process"), nginx("nginx proxy_cache", nginxCache)},
		},
		{
			name: "gRPC, every caller its own credential", over: overGRPC, how: underLoad, callers: callers, compared: cpuPerCall,
			tokend: tokend(), peers: asksFacade,
		},
		{
			name: "REST, every caller its own credential", over: overREST, how: underLoad, callers: callers, compared: cpuPerCall,
			tokend: tokend(), peers: []server{
				facade("facade, gateway that dials itself"), facade("facade, gateway in process", "-in-process"),
				nginx("nginx proxy_pass", ""), caddy(),
			},
		},
		{
			name: "gRPC, remembered in Redis", over: overGRPC, how: underLoad, callers: callers, compared: cpuPerCall,
			tokend: tokendWithRedis(), peers: asksFacade,
		},
		{
			name: "memory per idle gRPC connection", over: overGRPC, how: idle, compared: perConnection,
			tokend: tokend(), peers: []server{facade("facade as commonly written")},
		},
		{
			name: "64 callers of one credential, Atlas at 20 ms", over: overGRPC, how: underLoad, callers: callers, compared: median,
			oneCredential: true, latency: 20 * time.Millisecond,
			tokend: tokend(), peers: []server{tokend().with("tokend, one call alone", 1), facade("facade as commonly written")},
		},
		{
			name: "start to ready", how: starting, compared: untilReady,
			tokend: tokend(), peers: []server{facade("facade as commonly written"), nginx("nginx proxy_pass", ""), caddy()},
		},
	}
}

// variants are the first cases with more callers and fewer, with mTLS, and with an Atlas that is
// further away. Only the first peer is beside tokend.
func variants() []testCase {
	var all []testCase
	for _, base := range cases()[:4] {
		base.peers = base.peers[:1]
		for _, n := range []int{1, 16, 512} {
			c := base
			c.variant, c.callers = fmt.Sprintf("%d callers", n), n
			if n == 1 {
				c.variant = "1 caller"
			}
			all = append(all, c)
		}
		c := base
		c.variant, c.mtls = "mTLS", true
		all = append(all, c)
	}
	for _, base := range cases()[2:4] {
		base.peers = base.peers[:1]
		for _, d := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond} {
			c := base
			c.variant, c.latency = fmt.Sprintf("Atlas at %d ms", d.Milliseconds()), d
			all = append(all, c)
		}
	}
	return all
}

// title names the case.
func (c testCase) title() string {
	if c.variant == "" {
		return c.name
	}
	return c.name + ", " + c.variant
}
