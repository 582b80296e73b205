package route

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/plan"
)

// believing is a Kernel without connections that has read a node with a tunnel,
// two pods and a device that isn't ours.
func believing() *Kernel {
	k := newKernel(nil)
	k.unread = false
	for index, name := range map[int]string{1: "lo", 2: "eth0", 3: plan.VXLANLink, 4: "tw-a", 5: "tw-b"} {
		k.names[index], k.indexes[name], k.up[name] = name, index, true
		if !ours(name) {
			continue
		}
		d := device{index: index, kind: plan.LinkVeth, up: true, mtu: 1450}
		if name == plan.VXLANLink {
			d.kind = plan.LinkVXLAN
		} else {
			pod := netip.AddrFrom4([4]byte{10, 244, 0, byte(index)})
			k.neighbours.set(plan.NeighbourKey{Link: name, IP: pod}, plan.MAC{2})
			k.routes.set(netip.PrefixFrom(pod, 32), plan.Route{Link: name})
			k.sysctls.set("net/ipv4/conf/"+name+"/proxy_arp", "1")
		}
		k.links.set(name, d)
		k.managed[name] = struct{}{}
	}
	peer := netip.MustParseAddr("172.16.10.11")
	k.routes.set(netip.MustParsePrefix("10.244.1.0/26"), plan.Route{Link: plan.VXLANLink, Gateway: peer, OnLink: true})
	k.neighbours.set(plan.NeighbourKey{Link: plan.VXLANLink, IP: peer}, plan.MAC{2, 1})
	k.fdb.set(plan.FDBKey{Link: plan.VXLANLink, MAC: plan.MAC{2, 1}}, peer)
	k.addresses.set(plan.AddressKey{Link: "tw-a", Prefix: netip.MustParsePrefix("fe80::1/64")}, struct{}{})
	k.conflicts[netip.MustParsePrefix("10.244.9.0/26")] = struct{}{}
	k.waiting["eth1"] = struct{}{}
	return k
}

// FuzzNotifications hears what a kernel may say. Whatever that is, the belief
// stays whole: links and what is on them agree. The seeds are datagrams that a
// kernel sent.
func FuzzNotifications(f *testing.F) {
	f.Fuzz(func(t *testing.T, datagram []byte) {
		k := believing()
		for range 2 { // the second time it is no news
			n := noNews()
			n.takeAll(datagram)
			k.learn(n)
		}
		if k.unread {
			return // all is read anew
		}
		for link, d := range k.links.have {
			if index, ok := k.indexes[link]; !ok || index != d.index {
				t.Errorf("link %q has index %d, and by its name %d, %v", link, d.index, index, ok)
			}
		}
		whole(t, "sysctls", k.sysctls)
		whole(t, "links", k.links)
		whole(t, "addresses", k.addresses)
		whole(t, "neighbours", k.neighbours)
		whole(t, "forwarding entries", k.fdb)
		whole(t, "routes", k.routes)
	})
}

// whole fails unless what is believed and what is known by link are the same.
func whole[K, V comparable](t *testing.T, what string, b *belief[K, V]) {
	t.Helper()
	n := 0
	for link, keys := range b.on {
		for key := range keys {
			if v, ok := b.have[key]; !ok || b.link(key, v) != link {
				t.Errorf("%s: %v is said to be on %q", what, key, link)
			}
			n++
		}
	}
	if n != len(b.have) {
		t.Errorf("%s: %d are known by link, of %d: %v", what, n, len(b.have), slices.Collect(maps.Keys(b.have)))
	}
}

// FuzzAnswers reads objects as a dump has them. The seeds are what a kernel answered.
func FuzzAnswers(f *testing.F) {
	f.Fuzz(func(t *testing.T, payload []byte) {
		if m, ok := parseRoute(payload); ok && !m.prefix.IsValid() {
			t.Errorf("a route to %v", m.prefix)
		}
		if _, p, ok := parseAddress(payload); ok && !p.IsValid() {
			t.Errorf("address %v", p)
		}
		if m, ok := parseNeighbour(payload); ok && !m.ip.IsValid() {
			t.Errorf("neighbour %v", m.ip)
		}
		if name, d, ok := parseLink(payload); ok && (name == "" || d.index <= 0) {
			t.Errorf("link %q, %+v", name, d)
		}
	})
}

// FuzzOriginals reads the file of sysctls' old values: nothing outside /proc/sys
// may ever be written by it, and what we wrote is read.
func FuzzOriginals(f *testing.F) {
	f.Add("net/ipv4/ip_forward 0\nnet/ipv4/conf/eth0/rp_filter 2\nnet/ipv4/ip_local_port_range 32768 60999\n")
	f.Add("net/ipv4/ip_forward")
	f.Add("../../etc/passwd x\n/etc/passwd y\n")
	f.Fuzz(func(t *testing.T, text string) {
		var again strings.Builder
		all := parseOriginals(text)
		for _, o := range all {
			if path := filepath.Join(sysctlRoot, o.path); !strings.HasPrefix(path, sysctlRoot+"/") && path != sysctlRoot {
				t.Errorf("%q leads to %s", text, path)
			}
			again.WriteString(o.path + " " + o.value + "\n")
		}
		if got := parseOriginals(again.String()); !slices.Equal(got, all) {
			t.Errorf("%q gives %q, and written and read again %q", text, all, got)
		}
	})
}
