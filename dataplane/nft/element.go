package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

const (
	// elemKeyEnd is NFTA_SET_ELEM_KEY_END.
	elemKeyEnd = 10
	// intervalOpen is nft's note on an interval that reaches to the end of
	// the address space.
	intervalOpen = 1
)

// checkElement returns the element in the one form in which the mirror keeps
// it, or says what is wrong with it.
func checkElement(d *definition, key string, planned plan.Packed) (plan.Packed, error) {
	e := planned.Element()
	checked, err := d.check(key, e)
	switch {
	case err != nil:
		return "", err
	case checked == e:
		return planned, nil
	}
	return plan.Pack(checked), nil
}

func (d *definition) check(key string, e plan.Element) (plan.Element, error) {
	if d.dynamic() {
		return e, fmt.Errorf("packets alone make elements of a dynamic set")
	}
	if len(key) != d.keySize {
		return e, fmt.Errorf("a key of %d bytes, the set's has %d", len(key), d.keySize)
	}
	switch {
	case !d.interval() && e.End != "":
		return e, fmt.Errorf("a range in a set without intervals")
	case d.interval() && e.End == "":
		e.End = key
	}
	if d.interval() && (len(e.End) != len(key) || e.End < key) {
		return e, fmt.Errorf("the range's end is not after its start")
	}
	switch {
	case d.verdicts():
		if _, err := parseVerdict(e.Verdict); err != nil {
			return e, err
		}
		if e.Value != "" {
			return e, fmt.Errorf("a value in a verdict map")
		}
	case e.Verdict != "":
		return e, fmt.Errorf("a verdict in what is not a verdict map")
	case len(e.Value) != d.valueSize:
		return e, fmt.Errorf("a value of %d bytes, the map's has %d", len(e.Value), d.valueSize)
	}
	e.Comment = cutComment(e.Comment)
	return e, nil
}

// natural cuts a plan's key or value to the kernel's length: a lone port or
// protocol is not padded there.
func natural(key string, length uint32) string { return key[:min(int(length), len(key))] }

// appendElement adds an element to the list of a request. The kernel keeps a
// range as a pair of keys, in a set of concatenations; else as two elements, of
// which the second, marked, is the first key after it.
func appendElement(list attributes, d *definition, key string, packed plan.Packed) attributes {
	e := packed.Element()
	list, item := list.begin(unix.NFTA_LIST_ELEM)
	list = withData(list, unix.NFTA_SET_ELEM_KEY, natural(key, d.keyLen))
	if d.concat() {
		list = withData(list, elemKeyEnd, e.End)
	}
	switch {
	case d.verdicts():
		v, _ := parseVerdict(e.Verdict) // checked by checkElement
		list = list.nest(unix.NFTA_SET_ELEM_DATA, verdictValue(v))
	case e.Value != "":
		list = withData(list, unix.NFTA_SET_ELEM_DATA, natural(e.Value, d.dataLen))
	}
	var note []byte
	if e.Comment != "" {
		note = userdata.AppendString(note, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, e.Comment)
	}
	var after []byte
	if d.interval() && !d.concat() {
		if after = successor([]byte(natural(e.End, d.keyLen))); after == nil {
			note = userdata.AppendUint32(note, userdata.NFTNL_UDATA_SET_ELEM_FLAGS, intervalOpen)
		}
	}
	if note != nil {
		list = list.bytes(unix.NFTA_SET_ELEM_USERDATA, note)
	}
	list = list.end(item)
	if after != nil {
		list, item = list.begin(unix.NFTA_LIST_ELEM)
		list = list.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		list = withData(list, unix.NFTA_SET_ELEM_KEY, after).end(item)
	}
	return list
}

func verdictValue(v expr.Verdict) attributes {
	code := attributes(nil).u32(unix.NFTA_VERDICT_CODE, uint32(v.Kind))
	if v.Chain != "" {
		code = code.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	return attributes(nil).nest(unix.NFTA_DATA_VERDICT, code)
}

// successor is the next key; nil after the last.
func successor(key []byte) []byte {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i]++; key[i] != 0 {
			return key
		}
	}
	return nil
}

func predecessor(key []byte) []byte {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i]--; key[i] != 0xff {
			break
		}
	}
	return key
}

// listing collects the elements that the kernel lists, in any order.
type listing struct {
	definition
	elements map[string]plan.Packed
	ends     [][]byte // first keys after ranges
	twice    bool     // an element came again
}

func newListing(d definition) *listing {
	return &listing{definition: d, elements: map[string]plan.Packed{}}
}

// add reads one answer of a listing, which holds several elements.
func (l *listing) add(a attributes) {
	for _, item := range a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS).all() {
		var key attributes
		var e plan.Element
		var flags uint32
		for kind, v := range item.all() {
			switch kind {
			case unix.NFTA_SET_ELEM_KEY:
				key = v.get(unix.NFTA_DATA_VALUE)
			case elemKeyEnd:
				e.End = string(v.get(unix.NFTA_DATA_VALUE))
			case unix.NFTA_SET_ELEM_DATA:
				e.Value, e.Verdict = parseData(v)
			case unix.NFTA_SET_ELEM_FLAGS:
				flags = v.asU32()
			case unix.NFTA_SET_ELEM_USERDATA:
				e.Comment = parseComment(v, userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
			}
		}
		if flags&unix.NFT_SET_ELEM_INTERVAL_END != 0 {
			l.ends = append(l.ends, append([]byte(nil), key...))
			continue
		}
		padded := pad(string(key), l.keySize)
		if l.concat() && e.End == "" {
			e.End = padded
		}
		if e.Value != "" {
			e.Value = pad(e.Value, l.valueSize)
		}
		_, again := l.elements[padded]
		l.twice = l.twice || again
		l.elements[padded] = plan.Pack(e)
	}
}

// finish gives ranges their ends: the nearest end mark after the start, or the
// end of the address space.
func (l *listing) finish() map[string]plan.Packed {
	if !l.interval() || l.concat() {
		return l.elements
	}
	starts := slices.Sorted(maps.Keys(l.elements))
	ends := make(map[string]struct{}, len(l.ends))
	for _, e := range l.ends {
		ends[string(predecessor(e))] = struct{}{}
	}
	lasts := slices.Sorted(maps.Keys(ends))
	i := 0
	for _, start := range starts {
		e := l.elements[start].Element()
		for i < len(lasts) && lasts[i] < start[:min(int(l.keyLen), len(start))] {
			i++
		}
		last := strings.Repeat("\xff", int(l.keyLen))
		if i < len(lasts) {
			last = lasts[i]
		}
		e.End = pad(last, l.keySize)
		l.elements[start] = plan.Pack(e)
	}
	return l.elements
}

func pad(key string, size int) string {
	if len(key) >= size {
		return key
	}
	return key + strings.Repeat("\x00", size-len(key))
}

// parseData reads what a map gives: bytes or a verdict.
func parseData(a attributes) (value, verdict string) {
	v := a.get(unix.NFTA_DATA_VERDICT)
	if v == nil {
		return string(a.get(unix.NFTA_DATA_VALUE)), ""
	}
	code := expr.VerdictKind(int32(v.get(unix.NFTA_VERDICT_CODE).asU32()))
	return "", formatVerdict(expr.Verdict{Kind: code, Chain: v.get(unix.NFTA_VERDICT_CHAIN).asText()})
}

var verdictKinds = map[string]expr.VerdictKind{
	"accept": expr.VerdictAccept,
	"drop":   expr.VerdictDrop,
	"return": expr.VerdictReturn,
	"jump":   expr.VerdictJump,
	"goto":   expr.VerdictGoto,
}

func parseVerdict(text string) (expr.Verdict, error) {
	word, chain, toChain := strings.Cut(text, " ")
	kind, ok := verdictKinds[word]
	if !ok || toChain != (kind == expr.VerdictJump || kind == expr.VerdictGoto) || toChain && chain == "" {
		return expr.Verdict{}, fmt.Errorf(`%q is not a verdict: want accept, drop, return, "jump CHAIN" or "goto CHAIN"`, text)
	}
	return expr.Verdict{Kind: kind, Chain: chain}, nil
}

func formatVerdict(v expr.Verdict) string {
	for word, kind := range verdictKinds {
		if kind != v.Kind {
			continue
		}
		if v.Chain != "" {
			return word + " " + v.Chain
		}
		return word
	}
	return fmt.Sprintf("verdict %d", v.Kind)
}

// hostOrder is a number as registers hold it.
func hostOrder(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
