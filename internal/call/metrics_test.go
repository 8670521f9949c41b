package call

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// TestCallMetrics checks that a call is counted per transport when it starts, while it runs, and
// when it ends, by code and reason.
func TestCallMetrics(t *testing.T) {
	for name, mark := range map[string]func(context.Context) context.Context{
		"grpc": func(ctx context.Context) context.Context { return ctx },
		"rest": func(ctx context.Context) context.Context {
			ctx, _ = WithREST(ctx, http.Header{}, func(metadata.MD) {})
			return ctx
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			m := cfg.Metrics
			intercept := New(cfg)
			call := func(handler grpc.UnaryHandler) {
				ctx := metadata.NewIncomingContext(mark(t.Context()), metadata.Pairs("authorization", "JWT a.b.c"))
				_, _ = intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, handler)
			}
			inFlight := m.inFlight.WithLabelValues(name)
			call(func(context.Context, any) (any, error) {
				if n := testutil.ToFloat64(inFlight); n != 1 {
					t.Errorf("%v in flight during the call", n)
				}
				return nil, nil
			})
			call(func(context.Context, any) (any, error) { return nil, &apierror.Error{Reason: apierror.AtlasForbidden} })
			call(func(context.Context, any) (any, error) { panic("planted") })
			for what, c := range map[string]prometheus.Collector{
				"started": m.started.WithLabelValues("unary", "s", "M", name), "in flight": inFlight,
				"OK":               m.handled.WithLabelValues("unary", "s", "M", name, "OK"),
				"PermissionDenied": m.handled.WithLabelValues("unary", "s", "M", name, "PermissionDenied"),
				"Internal":         m.handled.WithLabelValues("unary", "s", "M", name, "Internal"),
				"ATLAS_FORBIDDEN":  m.failed.WithLabelValues("ATLAS_FORBIDDEN", name),
				"INTERNAL":         m.failed.WithLabelValues("INTERNAL", name),
			} {
				want := map[string]float64{"started": 3, "in flight": 0}
				n, special := want[what]
				if !special {
					n = 1
				}
				if got := testutil.ToFloat64(c); got != n {
					t.Errorf("%s: %v, want %v", what, got, n)
				}
			}
			if n := testutil.CollectAndCount(m.seconds); n != 2 {
				t.Errorf("%d histograms, want one for each transport", n)
			}
		})
	}
}

// TestNoNewSeries checks that no call adds a series.
func TestNoNewSeries(t *testing.T) {
	cfg, registry := testConfig(), prometheus.NewRegistry()
	cfg.Metrics = NewMetrics(registry, testService)
	count := func() int {
		n, err := testutil.GatherAndCount(registry)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	intercept := New(cfg)
	for _, method := range []string{"/s/M", "/s/planted", "unknown method", ""} {
		_, _ = intercept(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, nil)
	}
	cfg.Metrics.CountFailure(t.Context(), apierror.From(errors.New("planted")))
	if after := count(); after != before {
		t.Errorf("%d series, %d at the start", after, before)
	}
}

// TestExemplars checks that the exemplar of a call is its trace id if the trace is sampled.
func TestExemplars(t *testing.T) {
	const trace = "0af7651916cd43dd8448eb211c80319c"
	for _, c := range []struct {
		traceparent string
		want        string
	}{
		{"00-" + trace + "-b7ad6b7169203331-01", trace},
		{"00-" + trace + "-b7ad6b7169203331-03", trace},
		{"00-" + trace + "-b7ad6b7169203331-00", ""},
		{"00-" + trace + "-b7ad6b7169203331-02", ""},
		{"00-" + trace + "-b7ad6b7169203331-01-more", ""},
		{"00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", ""},
		{"00-planted-b7ad6b7169203331-01", ""},
		{"00-" + trace + "-b7ad6b7169203331-zz", ""},
		{"01-" + trace + "-b7ad6b7169203331-00-01", ""}, // another version's last part may mean something else
		{"00", ""},
		{"00-" + trace, ""},
		{"", ""},
	} {
		cfg, registry := testConfig(), prometheus.NewPedanticRegistry()
		cfg.Metrics = NewMetrics(registry, testService)
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c", "traceparent", c.traceparent))
		_, _ = New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(context.Context, any) (any, error) { return nil, nil })
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, family := range families {
			for _, m := range family.GetMetric() {
				for _, bucket := range m.GetHistogram().GetBucket() {
					for _, label := range bucket.GetExemplar().GetLabel() {
						found = append(found, label.GetName()+"="+label.GetValue())
					}
				}
			}
		}
		want := ""
		if c.want != "" {
			want = "trace_id=" + c.want
		}
		if got := strings.Join(found, " "); got != want {
			t.Errorf("%q: exemplars %q, want %q", c.traceparent, got, want)
		}
	}
}
