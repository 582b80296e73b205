package preflight

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
)

// checkFirewall looks for programs that write rules again whenever they like.
func checkFirewall(f *Facts) (string, []Finding) {
	var seen []string
	var out []Finding
	tell := func(name, how string) {
		seen = append(seen, name)
		out = append(out, found(health.FirewallRuns, "%s", how))
	}
	if f.Processes["firewalld"] {
		tell("firewalld", "firewalld is running: `systemctl disable --now firewalld`")
	}
	if setting(f.text("etc/ufw/ufw.conf"), "ENABLED") == "yes" {
		tell("ufw", "ufw is enabled: `ufw disable`")
	}
	if len(seen) == 0 {
		return "none", nil
	}
	return strings.Join(seen, ", "), out
}

const (
	tcp = 6
	udp = 17
)

// wanted are the packets that have to get through.
type wanted struct {
	what    string
	hooks   []int
	packets []packet
}

func (f *Facts) wanted() []wanted {
	link := f.device(f.Underlay.Link)
	in := []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN}
	through := []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_POST_ROUTING}
	pod, tunnel := device{name: plan.VethPrefix + "pod"}, device{name: plan.VXLANLink}
	first, last := uint16(30000), uint16(32767)
	return []wanted{
		{fmt.Sprintf("udp %d, tunnels between nodes", api.DefaultVXLANPort), in, []packet{{proto: udp, port: api.DefaultVXLANPort, in: link}}},
		{"tcp 10250, the kubelet", in, []packet{{proto: tcp, port: 10250, in: link}}},
		// They are translated before they are routed.
		{fmt.Sprintf("tcp and udp %d-%d, node ports", first, last), []int{unix.NF_INET_PRE_ROUTING}, []packet{
			{proto: tcp, port: first, in: link}, {proto: tcp, port: last, in: link},
			{proto: udp, port: first, in: link}, {proto: udp, port: last, in: link}}},
		{"forwarded packets of pods", through, []packet{
			{proto: tcp, in: pod, out: link}, {proto: tcp, in: tunnel, out: pod}, {proto: tcp, in: link, out: pod}}},
	}
}

func (f *Facts) device(name string) device {
	if i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Name == name }); i >= 0 {
		return device{name, f.Links[i].Index}
	}
	return device{name: name}
}

// checkPackets follows the packets that a node needs through the rules of others.
// What our own table does with them they can't hinder, nor it them: each base
// chain of a hook may drop.
func checkPackets(f *Facts) (string, []Finding) {
	var out []Finding
	for _, w := range f.wanted() {
		result, by := accepts, (*nft.Foreign)(nil)
		for _, p := range w.packets {
			for _, family := range f.families() {
				p.family = family
				if slices.Contains(w.hooks, unix.NF_INET_LOCAL_IN) {
					p.to = f.addressOf(family)
				}
				for _, at := range w.hooks {
					if o, c := hook(f.Rules, at, p); o == drops || o&drops != 0 && by == nil {
						result, by = o, c
					}
				}
			}
			if result == drops {
				break
			}
		}
		switch {
		case result == drops:
			out = append(out, found(health.PacketsDropped, "%s: %s drops them", w.what, nameOf(by)))
		case by != nil:
			out = append(out, found(health.PacketsPerhapsDrop, "%s: %s may drop them", w.what, nameOf(by)))
		}
	}
	base := 0
	for _, c := range f.Rules {
		if c.Type == "filter" {
			base++
		}
	}
	return fmt.Sprintf("%d chains of others filter", base), out
}

// families are those in which the node is reached.
func (f *Facts) families() []byte {
	var out []byte
	for _, family := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		if f.addressOf(family) != nil {
			out = append(out, family)
		}
	}
	if len(out) == 0 {
		return []byte{unix.NFPROTO_IPV4}
	}
	return out
}

func (f *Facts) addressOf(family byte) []byte {
	if a, ok := f.Underlay.Addr(family == unix.NFPROTO_IPV6); ok {
		return a.AsSlice()
	}
	return nil
}

func nameOf(c *nft.Foreign) string {
	family := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[c.Family]
	if c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6 {
		program := map[byte]string{unix.NFPROTO_IPV4: "iptables", unix.NFPROTO_IPV6: "ip6tables"}[c.Family]
		if strings.ToUpper(c.Name) == c.Name {
			return fmt.Sprintf("chain %s of table %s (%s)", c.Name, c.Table, program)
		}
	}
	return fmt.Sprintf("chain %s of nftables table %s %s", c.Name, family, c.Table)
}
