package preflight

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/fabric"
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

// wanted are packets that have to get through, and the hooks that they pass.
type wanted struct {
	what    string
	hooks   []int
	packets []packet
}

func (f *Facts) wanted() []wanted {
	link := f.device(f.Underlay.Link)
	in := []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN}
	through := []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_POST_ROUTING}
	out := []int{unix.NF_INET_LOCAL_OUT, unix.NF_INET_POST_ROUTING}
	pod, tunnel := device{name: plan.VethPrefix + "pod"}, device{name: plan.VXLANLink}
	first, last := uint16(30000), uint16(32767)
	var all []wanted
	for _, port := range f.Tunnels {
		all = append(all,
			wanted{fmt.Sprintf("udp %d, tunnels between nodes", port), in, []packet{{proto: udp, port: port, in: link}}},
			wanted{fmt.Sprintf("udp %d, tunnels to other nodes", port), out, []packet{{proto: udp, port: port, out: link}}})
	}
	if f.Kubelet {
		all = append(all, wanted{"tcp 10250, the kubelet", in, []packet{{proto: tcp, port: 10250, in: link}}})
	}
	return append(all, []wanted{
		// They are translated before they are routed.
		{fmt.Sprintf("tcp and udp %d-%d, node ports", first, last), []int{unix.NF_INET_PRE_ROUTING}, []packet{
			{proto: tcp, port: first, in: link}, {proto: tcp, port: last, in: link},
			{proto: udp, port: first, in: link}, {proto: udp, port: last, in: link}}},
		{"forwarded packets of pods", through, []packet{
			{proto: tcp, in: pod, out: link}, {proto: tcp, in: tunnel, out: pod}, {proto: tcp, in: link, out: pod}}},
		{"packets of the node to its pods", out, []packet{{proto: tcp, out: pod}}},
	}...)
}

func (f *Facts) device(name string) device {
	if i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Name == name }); i >= 0 {
		return device{name, f.Links[i].Index}
	}
	return device{name: name}
}

// Blocked are packets that a node needs and that rules of another program drop.
type Blocked struct {
	What    string // the packets
	By      string // the chain
	Certain bool   // otherwise it depends on what can't be judged from the rules
}

// blocked follows the packets that a node needs through the rules of others.
// What our own table does with them they can't hinder, nor it them: each base
// chain of a hook may drop.
func (f *Facts) blocked() (all []Blocked) {
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
		if by != nil {
			all = append(all, Blocked{w.what, nameOf(by), result == drops})
		}
	}
	return all
}

// Conflicts says which packets a running node needs and rules of another program
// surely drop, in the network namespace of the calling thread. The node is
// connected as the underlay says, and receives tunnels on these ports; kubelet
// says whether it has one.
func Conflicts(u fabric.Underlay, tunnels []uint16, kubelet bool) ([]Blocked, error) {
	f := Facts{Underlay: u, Tunnels: tunnels, Kubelet: kubelet, Links: []Link{{Name: u.Link}}}
	if link, err := net.InterfaceByName(u.Link); err == nil { // else it is gone, and rules ask for its name
		f.Links[0].Index = link.Index
	}
	if err := f.readRules(nft.ReadForeign); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(f.blocked(), func(b Blocked) bool { return !b.Certain }), nil
}

func checkPackets(f *Facts) (string, []Finding) {
	var out []Finding
	for _, b := range f.blocked() {
		if b.Certain {
			out = append(out, found(health.PacketsDropped, "%s: %s drops them", b.What, b.By))
		} else {
			out = append(out, found(health.PacketsPerhapsDrop, "%s: %s may drop them", b.What, b.By))
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
