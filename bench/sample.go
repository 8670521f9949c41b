package main

import "slices"

// sample is one measurement of one server. What was not measured is zero, and left out of the raw
// results.
type sample struct {
	Calls      int     `json:"calls,omitempty"`   // that were answered
	Refused    int     `json:"refused,omitempty"` // beside them, since there were too many
	AtlasCalls int     `json:"atlas_calls"`
	AtlasRate  float64 `json:"atlas_calls_per_second,omitempty"`
	AtlasMost  int     `json:"atlas_calls_at_a_time,omitempty"`
	CPUMicros  float64 `json:"cpu_us_per_call,omitempty"` // of the server
	RedisCPU   float64 `json:"redis_cpu_us_per_call,omitempty"`
	Rate       float64 `json:"calls_per_second,omitempty"`
	P50        float64 `json:"p50_ms,omitempty"`
	P99        float64 `json:"p99_ms,omitempty"`
	P999       float64 `json:"p999_ms,omitempty"`
	Resident   float64 `json:"resident_mib,omitempty"` // after the calls
	PerConn    float64 `json:"kib_per_connection,omitempty"`
	Ready      float64 `json:"ready_ms,omitempty"`
}

// metric is one number of a sample.
type metric struct {
	name, unit string
	of         func(sample) float64
}

var (
	cpuPerCall    = metric{"CPU per call", "µs", func(s sample) float64 { return s.CPUMicros }}
	rate          = metric{"calls a second", "", func(s sample) float64 { return s.Rate }}
	median        = metric{"p50", "ms", func(s sample) float64 { return s.P50 }}
	p99           = metric{"p99", "ms", func(s sample) float64 { return s.P99 }}
	p999          = metric{"p99.9", "ms", func(s sample) float64 { return s.P999 }}
	atlasRate     = metric{"calls to Atlas a second", "", func(s sample) float64 { return s.AtlasRate }}
	atlasMost     = metric{"at a time", "", func(s sample) float64 { return float64(s.AtlasMost) }}
	resident      = metric{"memory", "MiB", func(s sample) float64 { return s.Resident }}
	perConnection = metric{"memory per connection", "KiB", func(s sample) float64 { return s.PerConn }}
	untilReady    = metric{"time", "ms", func(s sample) float64 { return s.Ready }}
)

// spread is the median of some rounds, and their extremes.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		middle = (middle + sorted[len(sorted)/2-1]) / 2
	}
	return spread{middle, sorted[0], sorted[len(sorted)-1]}
}
