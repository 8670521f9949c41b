package measured

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

// failing answers everything with one error.
type failing struct{ err error }

func (f failing) CreateEphemeralToken(context.Context, atlas.JWT) (atlas.Token, error) {
	return "", f.err
}
func (f failing) DeleteEphemeralToken(context.Context, atlas.JWT) error         { return f.err }
func (f failing) LogIn(context.Context, atlas.UserAuthToken) (atlas.JWT, error) { return "", f.err }
func (f failing) RefreshJWT(context.Context, atlas.JWT) (atlas.JWT, error)      { return "", f.err }

// TestOutcomes: each way to end is counted once, as one of a fixed few, and comes back as it is.
func TestOutcomes(t *testing.T) {
	status := func(code int) error { return &atlas.Error{Kind: atlas.KindStatus, StatusCode: code} }
	kind := func(k atlas.Kind) error { return &atlas.Error{Kind: k} }
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "ok"}, {status(400), "refused"}, {status(401), "refused"}, {status(403), "refused"}, {status(404), "refused"},
		{status(429), "rate_limited"}, {status(500), "server_error"}, {status(503), "server_error"}, {status(999), "server_error"},
		{kind(atlas.KindUnreachable), "unreachable"}, {kind(atlas.KindTLS), "tls"}, {kind(atlas.KindTimeout), "timeout"},
		{kind(atlas.KindCanceled), "canceled"}, {kind(atlas.KindRedirect), "redirect"},
		{kind(atlas.KindInvalidResponse), "invalid_response"}, {kind(atlas.KindInvalidCredential), "not_sent"},
		{kind(atlas.KindUnavailable), "other"}, {kind(0), "other"}, {errors.New("planted"), "other"},
	} {
		client := New(failing{c.err})
		before := testutil.CollectAndCount(client)
		_, createErr := client.CreateEphemeralToken(t.Context(), "")
		_, logInErr := client.LogIn(t.Context(), "")
		_, refreshErr := client.RefreshJWT(t.Context(), "")
		for op, err := range map[atlas.Operation]error{
			atlas.OpCreate: createErr, atlas.OpDelete: client.DeleteEphemeralToken(t.Context(), ""), atlas.OpLogIn: logInErr, atlas.OpRefresh: refreshErr,
		} {
			if !errors.Is(err, c.err) {
				t.Errorf("%v: %s ends with %v", c.err, op, err)
			}
			if n := testutil.ToFloat64(client.requests.WithLabelValues(string(op), c.want)); n != 1 {
				t.Errorf("%v: %s counted %v times as %s", c.err, op, n, c.want)
			}
		}
		if after := testutil.CollectAndCount(client); after != before {
			t.Errorf("%v: %d series, %d before", c.err, after, before)
		}
	}
}

func TestResilience(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(Resilience(func() resilient.Stats {
		return resilient.Stats{Open: true, Retries: 1, OutOfBudget: 2, Limit: 3, InFlight: 4, Waiting: 5, Refused: 6}
	})); err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		m := f.GetMetric()[0]
		values[strings.TrimPrefix(f.GetName(), "tokend_atlas_")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	for name, want := range map[string]float64{
		"breaker_open": 1, "retries_total": 1, "retries_denied_total": 2, "in_flight_limit": 3, "in_flight": 4, "waiting": 5, "shed_total": 6,
	} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
}
