package main

import (
	"fmt"
	"time"
)

// transport is the transport of the calls.
type transport string

const (
	overGRPC transport = "gRPC"
	overREST transport = "REST"
)

// method is the way of measuring a case.
type method string

const (
	underLoad method = "load"  // callers call without pause
	idle      method = "idle"  // connections are open without calls
	starting  method = "start" // from the start of the program to readiness
)

// testCase is a measurement of tokend and its alternatives.
type testCase struct {
	name          string
	variant       string // the difference from the main table's case of that name, if any
	over          transport
	how           method
	callers       int
	oneCredential bool // all callers have the same credential
	mtls          bool
	latency       time.Duration // of Atlas
	compared      metric        // the metric of the ratios

	tokend server
	peers  []server
}

// cases returns the rows of the main table: 64 callers in plaintext and an Atlas without latency,
// unless the case says otherwise.
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

// variants returns the first cases with other numbers of callers, with mTLS, and with a slower
// Atlas, each with the first peer only.
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

// title returns the name of the case with its variant.
func (c testCase) title() string {
	if c.variant == "" {
		return c.name
	}
	return c.name + ", " + c.variant
}
