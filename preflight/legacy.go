package preflight

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/nft"
)

// legacyFamily is how the kernel keeps the rules of iptables-legacy or
// ip6tables-legacy (linux/netfilter_ipv4/ip_tables.h and its sister).
type legacyFamily struct {
	family    byte
	level     int
	names     string // the tables that there are; reading loads none
	address   int    // bytes of one; there are source, destination and their masks
	toAt      uint32 // where the destination is in a packet's header
	protoAt   int
	invertAt  int
	offsetsAt int // of the target and of the next entry
	entrySize int
}

var legacyFamilies = []legacyFamily{
	{unix.NFPROTO_IPV4, unix.IPPROTO_IP, "ip_tables_names", 4, 16, 80, 83, 88, 112},
	{unix.NFPROTO_IPV6, unix.IPPROTO_IPV6, "ip6_tables_names", 16, 24, 128, 132, 140, 168},
}

const (
	getInfo     = 64 // IPT_SO_GET_INFO
	getEntries  = 65 // IPT_SO_GET_ENTRIES
	infoSize    = 84
	blobAt      = 40 // struct ipt_get_entries
	hooks       = 5
	extHeader   = 32 // struct xt_entry_match, xt_entry_target
	extNameSize = 29
	invertTo    = 0x10
	invertIn    = 1
	invertOut   = 2
	invertProto = 0x40
)

// readLegacy reads the tables filter and nat of iptables-legacy as if nf_tables
// had them.
func readLegacy() (all []nft.Foreign, err error) {
	for _, l := range legacyFamilies {
		names, err := os.ReadFile("/proc/thread-self/net/" + l.names)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(string(names)) {
			chains, err := l.read(name)
			if err != nil {
				return nil, fmt.Errorf("read table %s of iptables: %w", name, err)
			}
			all = append(all, chains...)
		}
	}
	return all, nil
}

func (l legacyFamily) read(table string) ([]nft.Foreign, error) {
	fd, err := unix.Socket(map[int]int{unix.IPPROTO_IP: unix.AF_INET, unix.IPPROTO_IPV6: unix.AF_INET6}[l.level], unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, table)
	if err := getsockopt(fd, l.level, getInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[80:])
	entries := make([]byte, blobAt+size)
	copy(entries, table)
	binary.NativeEndian.PutUint32(entries[32:], size)
	if err := getsockopt(fd, l.level, getEntries, entries); err != nil {
		return nil, err
	}
	return l.parse(table, info, entries[blobAt:]), nil
}

func getsockopt(fd, level, name int, buffer []byte) error {
	size := uint32(len(buffer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// parse divides the entries into chains. A built-in chain begins where its hook
// enters and ends at its underflow, whose verdict is the policy; another one
// begins behind an entry that has its name.
func (l legacyFamily) parse(table string, info, blob []byte) (chains []nft.Foreign) {
	names := [hooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	valid := binary.NativeEndian.Uint32(info[32:])
	starts := map[int]string{} // where chains begin, for jumps
	for at := 0; ; {
		e, ok := l.entry(blob, at)
		if !ok {
			break
		}
		for h := range hooks {
			if valid&(1<<h) != 0 && binary.NativeEndian.Uint32(info[36+4*h:]) == uint32(at) {
				kind := table
				if table != "nat" {
					kind = "filter"
				}
				starts[at] = names[h]
				chains = append(chains, nft.Foreign{Family: l.family, Table: table, Name: names[h], Type: kind, Hook: h})
			}
		}
		if e.target == "ERROR" {
			name := cString(e.targetData)
			starts[at+e.size] = name
			chains = append(chains, nft.Foreign{Family: l.family, Table: table, Name: name})
		}
		at += e.size
	}
	current := -1
	for at := 0; ; {
		e, ok := l.entry(blob, at)
		if !ok {
			return chains
		}
		if name, begins := starts[at]; begins {
			current = slices.IndexFunc(chains, func(c nft.Foreign) bool { return c.Name == name })
		}
		if current >= 0 && e.target != "ERROR" {
			c := &chains[current]
			if c.Type != "" && binary.NativeEndian.Uint32(info[56+4*c.Hook:]) == uint32(at) {
				c.Drops = e.verdict(starts) == "drop"
			} else {
				c.Rules = append(c.Rules, e.rule(starts))
			}
		}
		at += e.size
	}
}

// entry is a rule of iptables.
type entry struct {
	conditions []nft.Expression
	target     string
	targetData []byte
	size       int
}

func (l legacyFamily) entry(blob []byte, at int) (e entry, ok bool) {
	if at+l.entrySize > len(blob) {
		return e, false
	}
	b := blob[at:]
	targetAt, size := int(binary.NativeEndian.Uint16(b[l.offsetsAt:])), int(binary.NativeEndian.Uint16(b[l.offsetsAt+2:]))
	if targetAt < l.entrySize || size > len(b) || targetAt+extHeader > size {
		return e, false
	}
	e.size = size
	invert := b[l.invertAt]
	n := l.address
	if source := b[2*n : 3*n]; slices.ContainsFunc(source, func(c byte) bool { return c != 0 }) {
		e.conditions = append(e.conditions, nft.Expression{Name: "source"}) // nobody knows that of a packet
	}
	if mask := b[3*n : 4*n]; slices.ContainsFunc(mask, func(c byte) bool { return c != 0 }) {
		e.destination(l.toAt, b[n:2*n], mask, invert&invertTo != 0)
	}
	in, out := b[4*n:], b[4*n+unix.IFNAMSIZ:]
	e.device(unix.NFT_META_IIFNAME, in, in[2*unix.IFNAMSIZ:], invert&invertIn != 0)
	e.device(unix.NFT_META_OIFNAME, out, out[2*unix.IFNAMSIZ:], invert&invertOut != 0)
	if proto := b[l.protoAt]; proto != 0 {
		e.condition(unix.NFT_META_L4PROTO, []byte{proto}, invert&invertProto != 0)
	}
	for at := l.entrySize; at+extHeader <= targetAt; {
		length := int(binary.NativeEndian.Uint16(b[at:]))
		if length < extHeader || at+length > targetAt {
			return e, false
		}
		list := attributes(nil).add(unix.NFTA_MATCH_NAME, append([]byte(cString(b[at+2:at+2+extNameSize])), 0)).
			add(unix.NFTA_MATCH_INFO, b[at+extHeader:at+length])
		e.conditions = append(e.conditions, nft.Expression{Name: "match", Attributes: list})
		at += length
	}
	e.target, e.targetData = cString(b[targetAt+2:targetAt+2+extNameSize]), b[targetAt+extHeader:size]
	return e, true
}

// device is a condition on a name, of which the mask may leave the end open.
func (e *entry) device(key uint32, name, mask []byte, inverted bool) {
	length := 0
	for length < unix.IFNAMSIZ && mask[length] != 0 {
		length++
	}
	if length > 0 {
		e.condition(key, name[:length], inverted)
	}
}

const register = unix.NFT_REG_1

func (e *entry) condition(key uint32, value []byte, inverted bool) {
	e.conditions = append(e.conditions,
		nft.Expression{Name: "meta", Attributes: attributes(nil).number(unix.NFTA_META_DREG, register).number(unix.NFTA_META_KEY, key)},
		is(value, inverted))
}

func (e *entry) destination(at uint32, value, mask []byte, inverted bool) {
	data := func(v []byte) attributes { return attributes(nil).add(unix.NFTA_DATA_VALUE, v) }
	e.conditions = append(e.conditions,
		nft.Expression{Name: "payload", Attributes: attributes(nil).number(unix.NFTA_PAYLOAD_DREG, register).
			number(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER).number(unix.NFTA_PAYLOAD_OFFSET, at).number(unix.NFTA_PAYLOAD_LEN, uint32(len(value)))},
		nft.Expression{Name: "bitwise", Attributes: attributes(nil).number(unix.NFTA_BITWISE_DREG, register).number(unix.NFTA_BITWISE_SREG, register).
			add(unix.NFTA_BITWISE_MASK, data(mask)).add(unix.NFTA_BITWISE_XOR, data(make([]byte, len(mask))))},
		is(value, inverted))
}

// is compares the register.
func is(value []byte, inverted bool) nft.Expression {
	op := uint32(unix.NFT_CMP_EQ)
	if inverted {
		op = unix.NFT_CMP_NEQ
	}
	return nft.Expression{Name: "cmp", Attributes: attributes(nil).number(unix.NFTA_CMP_SREG, register).number(unix.NFTA_CMP_OP, op).
		add(unix.NFTA_CMP_DATA, attributes(nil).add(unix.NFTA_DATA_VALUE, value))}
}

func (e entry) rule(starts map[int]string) []nft.Expression {
	if verdict := e.verdict(starts); verdict != "" {
		return append(e.conditions, nft.Expression{Name: "immediate", Verdict: verdict})
	}
	name := attributes(nil).add(unix.NFTA_TARGET_NAME, append([]byte(e.target), 0))
	return append(e.conditions, nft.Expression{Name: "target", Attributes: name})
}

// verdict is that of the standard target, which has no name: a negative number
// is a verdict, another the place of a chain.
func (e entry) verdict(starts map[int]string) string {
	if e.target != "" || len(e.targetData) < 4 {
		return ""
	}
	switch v := int32(binary.NativeEndian.Uint32(e.targetData)); {
	case v == -1:
		return "drop"
	case v == -2:
		return "accept"
	case v < 0:
		return "return"
	default:
		return "jump " + starts[int(v)]
	}
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// attributes is a list of netlink attributes.
type attributes []byte

func (a attributes) add(kind uint16, value []byte) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.NLA_HDRLEN+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, value...)
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}

func (a attributes) number(kind uint16, v uint32) attributes {
	return a.add(kind, binary.BigEndian.AppendUint32(nil, v))
}
