// Twill-cni is the CNI plugin: a container runtime starts it for each pod, and
// it asks the agent on the node to do the work.
package main

import (
	"os"

	"github.com/twill-net/twill/cni/client"
)

func main() { os.Exit(client.Run(os.Getenv, os.Stdin, os.Stdout)) }
