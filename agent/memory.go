package agent

import (
	"os"
	"runtime/debug"
)

// AfterFirstSync gives back what decoding the first lists needed, which is more
// than is needed ever again; it takes some 10 ms of a core. From then on, unless
// GOGC says otherwise, an agent keeps much and makes little garbage: room for half
// of what is alive is enough. Before, when all of it comes at once, Go's default of
// as much again is a tenth faster.
func AfterFirstSync() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	debug.FreeOSMemory()
}
