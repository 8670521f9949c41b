package server

import (
	"errors"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// registerMetrics adds the server's own metrics, and those of the Go runtime and the process. No label may have a value
// that a caller or Atlas chooses: it could be a secret, and there is no end of them.
func registerMetrics(registry *prometheus.Registry, own []prometheus.Collector) error {
	standard := []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	var errs []error
	for _, collector := range slices.Concat(own, standard) {
		errs = append(errs, registry.Register(collector))
	}
	return errors.Join(errs...)
}

func metricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}
