package nft

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/twill-net/twill/plan"
	"golang.org/x/sys/unix"
)

const (
	// setConcat is NFT_SET_CONCAT: a set of ranges of concatenated keys.
	setConcat = 0x80
	// setDescConcat is NFTA_SET_DESC_CONCAT.
	setDescConcat = 2
	// verdictData is the data type of verdict maps, NFT_DATA_VERDICT.
	verdictData = 0xffffff00

	// dynamicSize is the kernel's own bound of a set that packets fill
	// (nft_dynset_init), some 8 MB at worst. It is compared with and never asked
	// for: the kernel would allocate buckets for that many entries at once, 2 MB
	// and 9 ms for each set.
	dynamicSize = 1<<16 - 1

	// maxData is the longest key or value, NFT_DATA_VALUE_MAXLEN.
	maxData = 64

	// maxComment is what nft allows, and fits user data, whose lengths are
	// bytes.
	maxComment = 127
)

// dataTypes are nft's numbers and natural sizes of the types that we use. A
// size counts where a field is not part of a concatenation.
var dataTypes = map[plan.Type]nftables.SetDatatype{
	plan.IPv4Addr:    nftables.TypeIPAddr,
	plan.IPv6Addr:    nftables.TypeIP6Addr,
	plan.InetProto:   nftables.TypeInetProto,
	plan.InetService: nftables.TypeInetService,
	plan.IfName:      nftables.TypeIFName,
	plan.Mark:        nftables.TypeMark,
}

// definition is a set as the kernel has it, but for its elements.
type definition struct {
	flags              uint32 // NFT_SET_*
	keyType, keyLen    uint32
	dataType, dataLen  uint32 // 0 for sets; dataLen 0 for verdict maps
	timeout            time.Duration
	size               uint32
	comment            string
	keySize, valueSize int          // of keys and values in a plan
	keyOrder, valOrder uint32       // what nft notes about byte order; never compared
	role               plan.SetRole // known of planned sets only; never compared
}

func (d definition) interval() bool { return d.flags&unix.NFT_SET_INTERVAL != 0 }
func (d definition) concat() bool   { return d.flags&setConcat != 0 }
func (d definition) dynamic() bool  { return d.flags&unix.NFT_SET_EVAL != 0 }
func (d definition) verdicts() bool { return d.dataType == verdictData }

// same compares what the kernel can tell.
func (d definition) same(o definition) bool {
	d.keyOrder, d.valOrder, d.role = 0, 0, 0
	o.keyOrder, o.valOrder, o.role = 0, 0, 0
	return d == o
}

// define translates a planned set.
func define(s plan.Set) (d definition, err error) {
	if d.keyType, d.keyLen, d.keyOrder, err = joinTypes(s.Key); err != nil {
		return d, fmt.Errorf("key: %w", err)
	}
	switch {
	case s.Value == nil:
	case len(s.Value) == 1 && s.Value[0] == plan.VerdictType:
		d.flags |= unix.NFT_SET_MAP
		d.dataType = verdictData
	default:
		d.flags |= unix.NFT_SET_MAP
		if d.dataType, d.dataLen, d.valOrder, err = joinTypes(s.Value); err != nil {
			return d, fmt.Errorf("value: %w", err)
		}
	}
	if s.Interval {
		// The kernel compares ranges byte by byte from the left, which is
		// right for network byte order only.
		if slices.ContainsFunc(s.Key, func(t plan.Type) bool { return t == plan.Mark || t == plan.IfName }) {
			return d, fmt.Errorf("no ranges of %s: keep marks and interface names out of interval sets", plan.Set{Key: s.Key})
		}
		d.flags |= unix.NFT_SET_INTERVAL
		if len(s.Key) > 1 {
			d.flags |= setConcat
		}
	}
	switch {
	case s.Dynamic && (s.Interval || d.verdicts()):
		return d, fmt.Errorf("packets can't add ranges or verdicts to a set: make it not dynamic")
	case s.Dynamic:
		d.flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
		d.size = dynamicSize
	case s.Timeout != 0:
		return d, fmt.Errorf("only dynamic sets have a timeout")
	}
	if s.Timeout < 0 || s.Timeout%time.Second != 0 {
		return d, fmt.Errorf("timeout %s is not a number of whole seconds", s.Timeout)
	}
	d.timeout, d.role = s.Timeout, s.Role
	d.comment = cutComment(s.Comment)
	return d.withSizes(), nil
}

// joinTypes returns the kernel's type number of a concatenation, the bytes it
// takes in a register and the byte order that nft notes for it.
func joinTypes(types []plan.Type) (number, size, order uint32, err error) {
	if len(types) == 0 {
		return 0, 0, 0, fmt.Errorf("no type")
	}
	parts := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		part, ok := dataTypes[t]
		if !ok {
			return 0, 0, 0, fmt.Errorf("type %q is not one that sets can have", t)
		}
		parts[i] = part
	}
	if len(types) == 1 {
		order = 2 // network
		if types[0] == plan.Mark || types[0] == plan.IfName {
			order = 1 // host
		}
		return parts[0].GetNFTMagic(), parts[0].Bytes, order, nil
	}
	joined, err := nftables.ConcatSetType(parts...)
	return joined.GetNFTMagic(), joined.Bytes, 0, err
}

// splitTypes is the reverse of joinTypes; nil if the types are not ours.
func splitTypes(number uint32) (types []plan.Type) {
	for ; number != 0; number >>= nftables.SetConcatTypeBits {
		found := false
		for t, d := range dataTypes {
			if d.GetNFTMagic() == number&nftables.SetConcatTypeMask {
				types, found = append(types, t), true
			}
		}
		if !found {
			return nil
		}
	}
	slices.Reverse(types)
	return types
}

// message is the request to make the set.
func (d definition) message(name string, id uint32) message {
	a := objectName(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, name)
	a = a.u32(unix.NFTA_SET_FLAGS, d.flags).
		u32(unix.NFTA_SET_KEY_TYPE, d.keyType).
		u32(unix.NFTA_SET_KEY_LEN, d.keyLen).
		u32(unix.NFTA_SET_ID, id)
	if d.dataType != 0 {
		a = a.u32(unix.NFTA_SET_DATA_TYPE, d.dataType).u32(unix.NFTA_SET_DATA_LEN, d.dataLen)
	}
	if d.timeout != 0 {
		a = a.u64(unix.NFTA_SET_TIMEOUT, uint64(d.timeout.Milliseconds()))
	}
	if desc := d.description(); desc != nil {
		a = a.nest(unix.NFTA_SET_DESC, desc)
	}
	note := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, d.keyOrder)
	if d.dataType != 0 {
		note = userdata.AppendUint32(note, userdata.NFTNL_UDATA_SET_DATABYTEORDER, d.valOrder)
	}
	if d.comment != "" {
		note = userdata.AppendString(note, userdata.NFTNL_UDATA_SET_COMMENT, d.comment)
	}
	a = a.bytes(unix.NFTA_SET_USERDATA, note)
	return message{unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, a}
}

// description tells the kernel the fields of a range set's key.
func (d definition) description() (desc attributes) {
	if !d.concat() {
		return desc
	}
	var fields attributes
	for _, t := range splitTypes(d.keyType) {
		fields = fields.nest(unix.NFTA_LIST_ELEM, attributes(nil).u32(unix.NFTA_SET_DESC_SIZE, dataTypes[t].Bytes))
	}
	return desc.nest(setDescConcat, fields)
}

// parseDefinition reads a set's listing.
func parseDefinition(a attributes) (name string, d definition) {
	for kind, v := range a.all() {
		switch kind {
		case unix.NFTA_SET_NAME:
			name = v.asText()
		case unix.NFTA_SET_FLAGS:
			d.flags = v.asU32()
		case unix.NFTA_SET_KEY_TYPE:
			d.keyType = v.asU32()
		case unix.NFTA_SET_KEY_LEN:
			d.keyLen = v.asU32()
		case unix.NFTA_SET_DATA_TYPE:
			d.dataType = v.asU32()
		case unix.NFTA_SET_DATA_LEN:
			d.dataLen = v.asU32()
		case unix.NFTA_SET_TIMEOUT:
			d.timeout = time.Duration(v.asU64()) * time.Millisecond
		case unix.NFTA_SET_DESC:
			d.size = v.get(unix.NFTA_SET_DESC_SIZE).asU32()
		case unix.NFTA_SET_USERDATA:
			d.comment = parseComment(v, userdata.NFTNL_UDATA_SET_COMMENT)
		}
	}
	if d.dynamic() && d.size == 0 {
		d.size = dynamicSize // the kernel sets it once a rule uses the set
	}
	d.keyLen, d.dataLen = min(d.keyLen, maxData), min(d.dataLen, maxData)
	if d.verdicts() {
		d.dataLen = 0 // the kernel tells the size of its own structure
	}
	return name, d.withSizes()
}

func (d definition) withSizes() definition {
	for _, t := range splitTypes(d.keyType) {
		d.keySize += t.Size()
	}
	for _, t := range splitTypes(d.dataType) {
		d.valueSize += t.Size()
	}
	return d
}

// objectName begins a message about an object of our table.
func objectName(table, object uint16, name string) attributes {
	return attributes(nil).text(table, plan.NFTable).text(object, name)
}

func cutComment(text string) string {
	if len(text) > maxComment {
		text = text[:maxComment-3] + "..."
	}
	return text
}

// parseComment finds a string in user data, which anybody may have written:
// lengths may lie.
func parseComment(data []byte, kind userdata.Type) string {
	for len(data) >= 2 {
		size := int(data[1])
		if len(data) < 2+size {
			return ""
		}
		if userdata.Type(data[0]) == kind {
			return attributes(data[2 : 2+size]).asText()
		}
		data = data[2+size:]
	}
	return ""
}
