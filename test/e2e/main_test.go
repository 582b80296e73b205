// Package e2e tests the whole house at once: real executables on a lab's nodes,
// intent written with the twill command, and packets that must or must not
// arrive. Each test asks for intent and then looks at what packets meet with.
//
// It never looks into a room: whatever can be tested without packets is tested
// there.
package e2e

import (
	"flag"
	"testing"
	"time"

	"github.com/twill-net/twill/test/testlab"
)

var (
	seed   = flag.Uint64("seed", 0, "begin random tests with this seed instead of a random one")
	cases  = flag.Int("cases", 96, "how many random connections TestTraceAgreesWithPackets tries")
	cycles = flag.Int("cycles", 100, "how many pods come and go in TestPodsComeAndGo")
	starts = flag.Int("starts", 30, "how many pods TestPodStartIsClosed starts")
	soak   = flag.Duration("soak", 20*time.Second, "how long TestSoak has pods, pools and agents come and go")
	outage = flag.Duration("outage", 20*time.Second, "how long the API server is away in TestKubernetesUnderLoad")
)

func TestMain(m *testing.M) { testlab.Main(m) }
