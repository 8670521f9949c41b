package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

var (
	identityValid = prometheus.NewDesc("tokend_identity_valid",
		"1 if the profile has a valid Atlas JWT.", []string{"profile"}, nil)
	identityRefused = prometheus.NewDesc("tokend_identity_refused",
		"1 while Atlas refuses the profile's userauthtoken or its JWTs.", []string{"profile"}, nil)
	identityIssued = prometheus.NewDesc("tokend_identity_issued_timestamp_seconds",
		"When the JWT was issued, in Unix seconds.", []string{"profile"}, nil)
	identityExpiry = prometheus.NewDesc("tokend_identity_expiry_timestamp_seconds",
		"When the JWT is no longer used, in Unix seconds.", []string{"profile"}, nil)
	identityNext = prometheus.NewDesc("tokend_identity_next_renewal_timestamp_seconds",
		"When the next login or refresh is due, in Unix seconds.", []string{"profile"}, nil)
	identityFailed = prometheus.NewDesc("tokend_identity_last_failure_timestamp_seconds",
		"When a login or refresh last failed, in Unix seconds.", []string{"profile"}, nil)
	issuerUp = prometheus.NewDesc("tokend_oidc_issuer_up",
		"1 if the last request for the OIDC issuer's keys succeeded.", []string{"issuer"}, nil)
	issuerKeys = prometheus.NewDesc("tokend_oidc_issuer_keys_timestamp_seconds",
		"When the OIDC issuer's keys in use were fetched, in Unix seconds.", []string{"issuer"}, nil)
)

// identityMetrics collects the state of the profiles and issuers that the current policy names.
// Unknown times have no series.
type identityMetrics struct{ auth *auth.Authenticator }

// Describe implements prometheus.Collector.
func (identityMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		identityValid, identityRefused, identityIssued, identityExpiry, identityNext, identityFailed, issuerUp, issuerKeys,
	} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (m identityMetrics) Collect(ch chan<- prometheus.Metric) {
	for profile, status := range m.auth.Profiles() {
		ch <- prometheus.MustNewConstMetric(identityValid, prometheus.GaugeValue, oneIf(status.Valid), profile)
		ch <- prometheus.MustNewConstMetric(identityRefused, prometheus.GaugeValue, oneIf(status.Refused), profile)
		collectTime(ch, identityIssued, status.Issued, profile)
		collectTime(ch, identityExpiry, status.Expires, profile)
		collectTime(ch, identityNext, status.NextDue, profile)
		collectTime(ch, identityFailed, status.FailedAt, profile)
	}
	for url, status := range m.auth.Issuers() {
		ch <- prometheus.MustNewConstMetric(issuerUp, prometheus.GaugeValue, oneIf(status.OK), url)
		collectTime(ch, issuerKeys, status.Keys, url)
	}
}

func collectTime(ch chan<- prometheus.Metric, desc *prometheus.Desc, at time.Time, label string) {
	if !at.IsZero() {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000, label)
	}
}

func oneIf(so bool) float64 {
	if so {
		return 1
	}
	return 0
}
