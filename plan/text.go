package plan

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// String is the whole plan as text, sorted, in the language of the programs that
// show the kernel's side: sysctl, ip and nft.
func (p *Plan) String() string {
	var b strings.Builder
	p.writeKernel(&b)
	p.WriteRuleset(&b)
	return b.String()
}

func (p *Plan) writeKernel(w io.Writer) {
	for _, k := range sortedBy(p.Sysctls, strings.Compare) {
		v, _ := p.Sysctls.Get(k)
		relation := "="
		if k == ConntrackMax {
			relation = ">="
		}
		fmt.Fprintf(w, "sysctl %s %s %s\n", k, relation, v)
	}
	for _, k := range sortedBy(p.Links, strings.Compare) {
		v, _ := p.Links.Get(k)
		fmt.Fprintf(w, "link %s %s\n", k, v)
	}
	for _, k := range sortedBy(p.Addresses, func(a, b AddressKey) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), comparePrefix(a.Prefix, b.Prefix))
	}) {
		fmt.Fprintf(w, "address %s dev %s\n", k.Prefix, k.Link)
	}
	for _, k := range sortedBy(p.Routes, comparePrefix) {
		v, _ := p.Routes.Get(k)
		fmt.Fprintf(w, "route %s\n", v.text(k))
	}
	for _, k := range sortedBy(p.Neighbours, func(a, b NeighbourKey) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), a.IP.Compare(b.IP))
	}) {
		v, _ := p.Neighbours.Get(k)
		fmt.Fprintf(w, "neighbour %s lladdr %s dev %s\n", k.IP, v, k.Link)
	}
	for _, k := range sortedBy(p.FDB, func(a, b FDBKey) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), slices.Compare(a.MAC[:], b.MAC[:]))
	}) {
		v, _ := p.FDB.Get(k)
		fmt.Fprintf(w, "fdb %s dst %s dev %s\n", k.MAC, v, k.Link)
	}
	for _, k := range sortedBy(p.HealthChecks, netip.AddrPort.Compare) {
		v, _ := p.HealthChecks.Get(k)
		fmt.Fprintf(w, "healthcheck at %s service %s endpoints %d\n", k, v.Service, v.LocalEndpoints)
	}
}

// WriteRuleset writes the nftables part in nft's own language: `nft -f` reads
// it.
func (p *Plan) WriteRuleset(w io.Writer) {
	fmt.Fprintf(w, "table inet %s {\n", NFTable)
	elements := map[string][]string{}
	for k, e := range p.Elements.All() {
		if set, ok := p.Sets.Get(k.Set); ok {
			elements[k.Set] = append(elements[k.Set], e.text(set, k.Key))
		}
	}
	for _, name := range sortedBy(p.Sets, strings.Compare) {
		set, _ := p.Sets.Get(name)
		word := "set"
		if set.Value != nil {
			word = "map"
		}
		fmt.Fprintf(w, "\t%s %s { %s", word, name, set)
		if list := elements[name]; len(list) > 0 {
			slices.Sort(list)
			fmt.Fprintf(w, "; elements = {\n\t\t%s }", strings.Join(list, ",\n\t\t"))
		}
		fmt.Fprintf(w, "; }\n")
	}
	for _, name := range sortedBy(p.Chains, strings.Compare) {
		chain, _ := p.Chains.Get(name)
		fmt.Fprintf(w, "\tchain %s {\n", name)
		if chain.Hook != "" {
			fmt.Fprintf(w, "\t\ttype %s hook %s priority %d; policy accept;\n", chain.Type, chain.Hook, chain.Priority)
		}
		for _, r := range chain.Rules {
			fmt.Fprintf(w, "\t\t%s\n", r)
		}
		fmt.Fprintf(w, "\t}\n")
	}
	fmt.Fprintf(w, "}\n")
}

// String describes the device as `ip link` would make it.
func (l Link) String() string {
	if l.Kind == LinkVXLAN {
		return fmt.Sprintf("mtu %d address %s type vxlan id %d local %s dev %s dstport %d nolearning", l.MTU, l.MAC, l.VNI, l.Local, l.Underlay, l.Port)
	}
	return fmt.Sprintf("mtu %d address %s type %s", l.MTU, l.MAC, l.Kind)
}

func (r Route) text(to netip.Prefix) string {
	if r.Blackhole {
		return "blackhole " + to.String()
	}
	words := []string{to.String()}
	if r.Gateway.IsValid() {
		words = append(words, "via", r.Gateway.String())
	}
	words = append(words, "dev", r.Link)
	if r.OnLink {
		words = append(words, "onlink")
	}
	if r.Source.IsValid() {
		words = append(words, "src", r.Source.String())
	}
	return strings.Join(words, " ")
}

func (e Element) text(set Set, key string) string {
	text := FormatKey(set.Key, key)
	if e.End != "" && e.End != key {
		text = formatRange(set.Key, key, e.End)
	}
	if e.Comment != "" {
		text += fmt.Sprintf(" comment %q", e.Comment)
	}
	switch {
	case e.Verdict != "":
		text += " : " + e.Verdict
	case e.Value != "":
		text += " : " + FormatKey(set.Value, e.Value)
	}
	return text
}

// formatRange prints an interval: field by field, as nft does for
// concatenations.
func formatRange(types []Type, from, to string) string {
	var words []string
	for _, t := range types {
		n := min(t.Size(), len(from), len(to))
		a, b := FormatKey([]Type{t}, from[:n]), FormatKey([]Type{t}, to[:n])
		if a != b {
			a += "-" + b
		}
		words = append(words, a)
		from, to = from[n:], to[n:]
	}
	return strings.Join(words, " . ")
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func sortedBy[K comparable, V any](t *Table[K, V], compare func(a, b K) int) []K {
	keys := make([]K, 0, t.Len())
	for k := range t.All() {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}
