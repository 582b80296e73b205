// Command twill is all of Twill but the CNI executable and the lab: the agent,
// the controller and the tool for people.
package main

import (
	"os"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/cli"
)

// version is set when a release is built.
var version = "dev"

func main() {
	os.Exit(cli.Main(cli.New(version, agent.Command)))
}
