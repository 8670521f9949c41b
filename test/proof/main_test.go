package proof

import (
	"os"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

func TestMain(m *testing.M) {
	if settings := os.Getenv(replicaVariable); settings != "" { // this process is a replica
		if err := runReplica(settings); err != nil {
			panic(err)
		}
		return
	}
	testutil.Main(m)
}
