// Package cni is the agent's side of the Container Network Interface: it
// listens on a socket for the executable twill-cni, checks what a container
// runtime asks against the specification, has an Attacher do it, and words the
// result as the asked version of the specification wants it. It never touches
// the kernel, the store or addresses itself.
//
// Versions 0.3.1 to 1.1.0 are spoken. Twill is an interface plugin: it stands
// first in a chain and makes the interface. If it stands later, what came
// before is passed on with our part added.
//
// # Configuration
//
// Besides the specification's keys there is one of our own:
//
//	socket   where the agent listens; default /run/twill/cni.sock
//
// "ipam" and a true "ipMasq" are refused: addresses come from Twill's pools,
// and a pool's natOutgoing says what is masqueraded. "dns" is passed on to the
// result.
//
// # What a runtime may say of one pod
//
// Capabilities (runtimeConfig): portMappings become host ports; ips asks for
// addresses, at most one of each family (a prefix length is allowed and has no
// meaning: pods have /32 and /128); mac is the pod's Ethernet address. Any
// other is refused unless it is empty.
//
// CNI_ARGS: K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID and
// K8S_POD_INFRA_CONTAINER_ID as Kubernetes' runtimes pass them, IP, MAC and
// IgnoreUnknown. Without a name the pod is called after the first 13 characters
// of its container's id, and lives in namespace "default".
//
// The configuration's args, for runtimes that have no other place for a pod's
// labels and ports (the lab's, for one):
//
//	"args": {
//	    "cni": {
//	        "labels": [{"key": "app", "value": "nginx"}],
//	        "ips": ["10.244.1.7"]
//	    },
//	    "twill.io": {
//	        "ports": [{"name": "http", "protocol": "TCP", "port": 80}]
//	    }
//	}
//
// "cni" is as in the specification's conventions. Ports are what a Pod's
// containers declare: a NetworkPolicy and a Service may use their names. Of
// several places that ask for an address the first counts: runtimeConfig, args,
// CNI_ARGS.
package cni
