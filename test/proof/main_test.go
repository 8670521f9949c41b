package proof

import (
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }
