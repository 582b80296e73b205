package api

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// FuzzNodeReceives reads what another node has published, or somebody in its
// name.
func FuzzNodeReceives(f *testing.F) {
	f.Add(`{"host-gw":{},"vxlan":{"mac":"02:aa:bb:cc:dd:ee","vni":4096,"port":8472}}`, "172.16.10.11", "fd00::11")
	f.Add(`{"vxlan":null}`, "::ffff:172.16.10.11", "fe80::1%eth0")
	f.Add(`null`, "", "172.16.10.300")
	f.Fuzz(func(t *testing.T, receives, first, second string) {
		n := &corev1.Node{}
		n.Annotations = map[string]string{ReceivesAnnotation: receives}
		for _, text := range []string{first, second} {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: text})
		}
		if r, err := NodeReceives(n); err != nil && r != nil {
			t.Errorf("%s gives %v and %v", receives, r, err)
		}
		seen := map[bool]bool{}
		for _, a := range NodeAddresses(n) {
			if !a.IsValid() || a.Is4In6() || a.Zone() != "" || seen[a.Is4()] {
				t.Errorf("%s, %s give %v", first, second, NodeAddresses(n))
			}
			seen[a.Is4()] = true
		}
	})
}
