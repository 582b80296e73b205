package pod

import (
	"net/netip"
	"slices"
	"testing"
)

// FuzzAlias reads what anybody may have written on a device of ours: it is
// whole or nothing, and what we write is read.
func FuzzAlias(f *testing.F) {
	f.Add("0123456789abcdef/eth0 10.244.1.7,fd00:10::7 /run/netns/blue")
	f.Add("c/eth0 10.244.1.7")
	f.Add("uplink to the rack / do not touch")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseAlias(text)
		if got.PodInterface == "" && got.ContainerID == "" {
			return
		}
		if len(got.Addresses) == 0 {
			t.Errorf("%q gives a pod without addresses: %+v", text, got)
		}
		a := Attachment{ContainerID: got.ContainerID, PodInterface: got.PodInterface, NetNS: got.NetNS}
		for _, addr := range got.Addresses {
			a.Addresses = append(a.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
		}
		again := parseAlias(a.alias())
		if got.NetNS != again.NetNS && len(text) <= aliasMax ||
			got.ContainerID != again.ContainerID || got.PodInterface != again.PodInterface || !slices.Equal(got.Addresses, again.Addresses) {
			t.Errorf("%q gives %+v, and written again %+v", text, got, again)
		}
	})
}
