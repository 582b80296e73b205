package agent

import (
	"os"
	"runtime/debug"
)

// TuneMemory sets the process's garbage collector for an agent, unless GOGC does:
// an agent keeps much and makes little garbage, so room for half of what is alive
// is enough.
func TuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// AfterFirstSync gives back what decoding the first lists needed, which is more
// than is needed ever again. It takes some 10 ms of a core.
func AfterFirstSync() { debug.FreeOSMemory() }
