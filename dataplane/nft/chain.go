package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/userdata"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

// base is what makes a chain a base chain.
type base struct {
	hook     int // -1: not a base chain
	kind     string
	priority int32
	policy   uint32
}

var hooks = map[string]int{
	"prerouting":  unix.NF_INET_PRE_ROUTING,
	"input":       unix.NF_INET_LOCAL_IN,
	"forward":     unix.NF_INET_FORWARD,
	"output":      unix.NF_INET_LOCAL_OUT,
	"postrouting": unix.NF_INET_POST_ROUTING,
}

var noBase = base{hook: -1}

// policyAccept is NF_ACCEPT.
const policyAccept = 1

// chain is a chain as the kernel has it. Rules are in the form of canonical.
type chain struct {
	base  base
	rules []string
}

// sets are the sets that the rules look up, as canonical names them.
func (c chain) sets() (names []string) {
	mark := fmt.Sprintf("lookup %02d=", unix.NFTA_LOOKUP_SET)
	for _, r := range c.rules {
		for e := range strings.SplitSeq(r, "; ") {
			if name, ok := strings.CutPrefix(e, mark); ok {
				name, _, _ = strings.Cut(name, " ")
				if b, err := hex.DecodeString(name); err == nil {
					names = append(names, strings.TrimRight(string(b), "\x00"))
				}
			}
		}
	}
	return names
}

func (c chain) equal(o chain) bool { return c.base == o.base && slices.Equal(c.rules, o.rules) }

// compiled is a chain that can be written.
type compiled struct {
	chain
	code    []rule
	callees []string // chains that its rules jump to
}

func (c compiler) compileChain(want plan.Chain) (compiled, error) {
	out := compiled{chain: chain{base: noBase}}
	if want.Hook != "" {
		hook, ok := hooks[want.Hook]
		if !ok {
			return out, fmt.Errorf("no hook is called %q", want.Hook)
		}
		if want.Type != "filter" && want.Type != "nat" && (want.Type != "route" || want.Hook != "output") {
			return out, fmt.Errorf("a base chain of type %q: want filter or nat, or route for output", want.Type)
		}
		out.base = base{hook, want.Type, int32(want.Priority), policyAccept}
	}
	for i, r := range want.Rules {
		rules, err := c.rules(r)
		if err != nil {
			return out, fmt.Errorf("rule %d: %w", i+1, err)
		}
		for _, r := range rules {
			out.code = append(out.code, r)
			out.rules = append(out.rules, canonical(r.code, r.comment))
		}
		for _, s := range r.Statements {
			if v, ok := s.(plan.Verdict); ok {
				if parsed, err := parseVerdict(string(v)); err == nil && parsed.Chain != "" {
					out.callees = append(out.callees, parsed.Chain)
				}
			}
		}
	}
	return out, nil
}

func (b base) message(name string) message {
	a := objectName(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, name)
	if b != noBase {
		a = a.nest(unix.NFTA_CHAIN_HOOK, attributes(nil).
			u32(unix.NFTA_HOOK_HOOKNUM, uint32(b.hook)).
			u32(unix.NFTA_HOOK_PRIORITY, uint32(b.priority))).
			u32(unix.NFTA_CHAIN_POLICY, b.policy).
			text(unix.NFTA_CHAIN_TYPE, b.kind)
	}
	return message{unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, a}
}

// parseBase reads a chain's listing.
func parseBase(a attributes) (name string, b base) {
	b = noBase
	for kind, v := range a.all() {
		switch kind {
		case unix.NFTA_CHAIN_NAME:
			name = v.asText()
		case unix.NFTA_CHAIN_HOOK:
			b.hook = int(v.get(unix.NFTA_HOOK_HOOKNUM).asU32())
			b.priority = int32(v.get(unix.NFTA_HOOK_PRIORITY).asU32())
		case unix.NFTA_CHAIN_TYPE:
			b.kind = v.asText()
		case unix.NFTA_CHAIN_POLICY:
			b.policy = v.asU32()
		}
	}
	return name, b
}

// parseRule reads a rule's listing.
func parseRule(a attributes) (chain, text string) {
	comment := parseComment(a.get(unix.NFTA_RULE_USERDATA), userdata.TypeComment)
	return a.get(unix.NFTA_RULE_CHAIN).asText(), canonical(a.get(unix.NFTA_RULE_EXPRESSIONS), comment)
}

// canonical is a rule as a text that is the same for a rule as we write it and
// for the same rule as the kernel lists it. Expressions become their names and
// their attributes, sorted by number; left out is what the kernel adds with a
// default (see silent), counters' values and the numbers of sets, which mean
// something within a transaction only. It works for expressions that we never
// write, too.
func canonical(code attributes, comment string) string {
	var b strings.Builder
	for _, e := range code.all() {
		name := e.get(unix.NFTA_EXPR_NAME).asText()
		b.WriteString(name)
		var words []string
		values := map[uint16]string{}
		for kind, v := range e.get(unix.NFTA_EXPR_DATA).all() {
			if name == "nat" && kind == unix.NFTA_NAT_FLAGS {
				// That address and port are given, the registers say, too.
				v = binary.BigEndian.AppendUint32(nil, v.asU32()&^3)
			}
			values[kind] = hex.EncodeToString(withoutFlags(name, kind, v))
		}
		for kind, v := range values {
			if !silent(name, kind, values) {
				words = append(words, fmt.Sprintf(" %02d=%s", kind, v))
			}
		}
		slices.Sort(words)
		b.WriteString(strings.Join(words, "") + "; ")
	}
	if comment != "" {
		fmt.Fprintf(&b, "# %s", comment)
	}
	return b.String()
}

// silent says whether an attribute of an expression says nothing.
func silent(expression string, kind uint16, values map[uint16]string) bool {
	zero := strings.Trim(values[kind], "0") == ""
	switch expression {
	case "counter":
		return true
	case "lookup":
		return kind == unix.NFTA_LOOKUP_SET_ID || kind == unix.NFTA_LOOKUP_FLAGS && zero
	case "dynset":
		return kind == unix.NFTA_DYNSET_SET_ID || (kind == unix.NFTA_DYNSET_FLAGS || kind == unix.NFTA_DYNSET_TIMEOUT) && zero
	case "bitwise":
		const operation = 6 // NFTA_BITWISE_OP: 0 is mask and xor
		return kind == operation && zero
	case "numgen":
		return kind == unix.NFTA_NG_OFFSET && zero
	case "reject":
		return kind == unix.NFTA_REJECT_ICMP_CODE && zero
	case "nat":
		switch kind {
		case unix.NFTA_NAT_REG_ADDR_MAX:
			return values[kind] == values[unix.NFTA_NAT_REG_ADDR_MIN]
		case unix.NFTA_NAT_REG_PROTO_MAX:
			return values[kind] == values[unix.NFTA_NAT_REG_PROTO_MIN]
		case unix.NFTA_NAT_FLAGS:
			return zero
		}
	}
	return false
}

// withoutFlags strips the nested flag, which the kernel leaves out in listings,
// from attributes within attributes.
func withoutFlags(expression string, kind uint16, v attributes) attributes {
	nested := false
	switch expression {
	case "cmp":
		nested = kind == unix.NFTA_CMP_DATA
	case "immediate":
		nested = kind == unix.NFTA_IMMEDIATE_DATA
	case "bitwise":
		nested = kind == unix.NFTA_BITWISE_MASK || kind == unix.NFTA_BITWISE_XOR
	}
	if !nested {
		return v
	}
	var out attributes
	for kind, v := range v.all() {
		if kind == unix.NFTA_DATA_VERDICT {
			var verdict attributes
			for kind, v := range v.all() {
				verdict = verdict.bytes(kind, v)
			}
			v = verdict
		}
		out = out.bytes(kind, v)
	}
	return out
}
