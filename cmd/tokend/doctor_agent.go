package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
)

// agentChecks ask the SPIFFE agent for what serve would have from it.
func (c *doctorCommand) agentChecks() []check {
	if c.SPIFFESocket == "" {
		return nil
	}
	return []check{{"spiffe SVID", []string{spiffeSocketFlag}, func(ctx context.Context) finding {
		own, err := spiffe.Fetch(ctx, c.SPIFFESocket)
		if err != nil {
			return bad(err.Error(), agentRemedy(err))
		}
		return findInSVID(own, time.Now())
	}}}
}

func findInSVID(own *spiffe.Identity, now time.Time) finding {
	leaf, domain := own.Certificate.Leaf, own.ID.TrustDomain()
	if f := findExpiry(leaf, now); f != nil {
		f.Detail = fmt.Sprintf("%s: %s", own.ID, f.Detail)
		f.Remedy = "Look into the agent's log, and at this machine's clock: the agent renews what it gives long before that."
		return *f
	}
	if f := findInAuthorities(forCallers, own.Bundle.X509Authorities(), now); f.Status == failed {
		return bad(fmt.Sprintf("the bundle of %s: %s", domain, f.Detail), "Look into the agent's log, and whether it reaches its server.")
	}
	return good("%s, valid until %s; authorities of %s: %d", own.ID, utc(leaf.NotAfter), domain, len(own.Bundle.X509Authorities()))
}
