// Twill-cni is the CNI plugin: a container runtime starts it for each pod, and
// it asks the agent on the node to do the work.
package main

import (
	"syscall"

	"github.com/twill-net/twill/cni/client"
)

func main() { syscall.Exit(client.Run()) }
