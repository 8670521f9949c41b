package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/net/http/httpguts"
)

// traceSettings are what OpenTelemetry's variables say.
type traceSettings struct {
	on         bool
	endpoint   string                        // that of either variable; "": the default
	propagator propagation.TextMapPropagator // never nil if on
	ignored    []string                      // of OTEL_PROPAGATORS
}

// readTraceSettings reports everything that is wrong with the variables, since the SDK would go on without the wrong ones, with
// other settings than its operator believes. No value is repeated that may have a secret in it. Where traces are off, nothing is read.
func readTraceSettings(vars variables) (traceSettings, []error) {
	set := traceSettings{}
	if strings.EqualFold(vars["OTEL_SDK_DISABLED"], "true") || vars["OTEL_TRACES_EXPORTER"] == "none" {
		return set, nil
	}
	set.endpoint = cmp.Or(vars["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"], vars["OTEL_EXPORTER_OTLP_ENDPOINT"])
	if set.on = vars["OTEL_TRACES_EXPORTER"] != "" || set.endpoint != ""; !set.on {
		return set, nil
	}
	set.propagator, set.ignored = propagators(vars["OTEL_PROPAGATORS"])
	return set, vars.wrongForTraces()
}

// propagators is what a list of them means here. Baggage is not read: it would go on to Atlas, which is another's, with whatever
// callers put into it.
func propagators(list string) (use propagation.TextMapPropagator, ignored []string) {
	if list == "" {
		return propagation.TraceContext{}, nil
	}
	use = propagation.NewCompositeTextMapPropagator() // none
	for name := range strings.SplitSeq(list, ",") {
		switch name = strings.TrimSpace(name); name {
		case "tracecontext":
			use = propagation.TraceContext{}
		case "none", "":
		default:
			ignored = append(ignored, name)
		}
	}
	return use, ignored
}

// wrongForTraces are the variables with values that tokend cannot go by.
func (vars variables) wrongForTraces() []error {
	var errs []error
	check := func(valid func(value string) error, names ...string) {
		for _, name := range names {
			if value, ok := vars[name]; ok {
				if err := valid(value); err != nil {
					errs = append(errs, fmt.Errorf("%s %w", name, err))
				}
			}
		}
	}
	otlp := func(name string) []string {
		return []string{"OTEL_EXPORTER_OTLP_" + name, "OTEL_EXPORTER_OTLP_TRACES_" + name}
	}
	check(trueOrFalse, "OTEL_SDK_DISABLED")
	check(oneOfThese("otlp", "none"), "OTEL_TRACES_EXPORTER")
	check(httpProtobuf, otlp("PROTOCOL")...)
	check(oneOfThese("gzip", "none"), otlp("COMPRESSION")...)
	check(trueOrFalse, otlp("INSECURE")...)
	check(wholeNumber, otlp("TIMEOUT")...)
	check(wholeNumber, "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
	check(otlpEndpoint, otlp("ENDPOINT")...)
	check(otlpHeaders, otlp("HEADERS")...)
	check(authoritiesFile, otlp("CERTIFICATE")...)
	check(oneOfThese("always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"), "OTEL_TRACES_SAMPLER")
	if strings.Contains(vars["OTEL_TRACES_SAMPLER"], "ratio") {
		check(ratio, "OTEL_TRACES_SAMPLER_ARG")
	}
	check(resourceAttributes, "OTEL_RESOURCE_ATTRIBUTES")
	certs, keys := otlp("CLIENT_CERTIFICATE"), otlp("CLIENT_KEY")
	for i, cert := range certs {
		if vars[cert] == "" && vars[keys[i]] == "" {
			continue
		}
		if _, err := tls.LoadX509KeyPair(vars[cert], vars[keys[i]]); err != nil {
			errs = append(errs, fmt.Errorf("%s and %s must be the files of a certificate and its key, PEM", cert, keys[i]))
		}
	}
	return errs
}

func oneOfThese(choices ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(choices, value) {
			return fmt.Errorf("must be one of %s", strings.Join(choices, ", "))
		}
		return nil
	}
}

func httpProtobuf(value string) error {
	if value != "http/protobuf" {
		return errors.New("must be http/protobuf, which collectors take on port 4318: tokend speaks no other protocol of OTLP")
	}
	return nil
}

func trueOrFalse(value string) error { return oneOfThese("true", "false")(strings.ToLower(value)) }

func wholeNumber(value string) error {
	if n, err := strconv.ParseUint(value, 10, 31); err != nil || n == 0 {
		return errors.New("must be a whole number above zero")
	}
	return nil
}

func ratio(value string) error {
	if f, err := strconv.ParseFloat(value, 64); err != nil || !(f >= 0 && f <= 1) {
		return errors.New("must be a number from 0 to 1")
	}
	return nil
}

// otlpEndpoint refuses what the exporter would leave out without a word as well.
func otlpEndpoint(value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return errors.New("must be a URL such as http://collector:4318")
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return errors.New("must be a URL without user, query or fragment: credentials belong in OTEL_EXPORTER_OTLP_HEADERS")
	}
	return nil
}

func otlpHeaders(value string) error {
	for pair := range strings.SplitSeq(value, ",") {
		name, escaped, ok := strings.Cut(pair, "=")
		text, err := url.PathUnescape(escaped)
		if !ok || err != nil || !httpguts.ValidHeaderFieldName(strings.TrimSpace(name)) || !httpguts.ValidHeaderFieldValue(strings.TrimSpace(text)) {
			return errors.New("must be name=value,name2=value2, values percent-encoded")
		}
	}
	return nil
}

func resourceAttributes(value string) error {
	for pair := range strings.SplitSeq(value, ",") {
		name, escaped, ok := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(escaped); !ok || err != nil || strings.TrimSpace(name) == "" {
			return errors.New("must be name=value,name2=value2, values percent-encoded")
		}
	}
	return nil
}

func authoritiesFile(file string) error {
	content, err := os.ReadFile(file)
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(content) {
		return errors.New("must be a file with certificates of authorities, PEM")
	}
	return nil
}
