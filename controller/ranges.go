package controller

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
)

// largestRange is how many addresses of a range are given out unasked; an IPv6
// range has more than anyone could use.
const largestRange = 1 << 20

// ranges is what services can be given.
type ranges struct {
	cidrs []netip.Prefix
	ports [2]int
}

func (r ranges) check() error {
	seen := map[corev1.IPFamily]netip.Prefix{}
	for _, cidr := range r.cidrs {
		if !cidr.IsValid() || cidr != cidr.Masked() || cidr.Addr().Is4In6() {
			return fmt.Errorf("service range %s is no range; write the network's address, such as 10.1.0.0/16", cidr)
		}
		if cidr.Addr().BitLen()-cidr.Bits() < 3 {
			return fmt.Errorf("service range %s is too small; give at least 8 addresses", cidr)
		}
		family := familyOf(cidr.Addr())
		if other, ok := seen[family]; ok {
			return fmt.Errorf("service ranges %s and %s are both %s; give at most one of each family", other, cidr, family)
		}
		seen[family] = cidr
	}
	if r.ports[0] < 1 || r.ports[1] > 65535 || r.ports[0] > r.ports[1] {
		return fmt.Errorf("node ports %d-%d are no range of ports", r.ports[0], r.ports[1])
	}
	return nil
}

func familyOf(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// cidr returns the range of a family.
func (r ranges) cidr(family corev1.IPFamily) (netip.Prefix, bool) {
	for _, cidr := range r.cidrs {
		if familyOf(cidr.Addr()) == family {
			return cidr, true
		}
	}
	return netip.Prefix{}, false
}

// contains reports whether a service may ask for the address: all but the
// network's own and IPv4's broadcast.
func (r ranges) contains(addr netip.Addr) bool {
	cidr, ok := r.cidr(familyOf(addr))
	if !ok || !cidr.Contains(addr) || addr == cidr.Addr() {
		return false
	}
	return addr.Is6() || cidr.Contains(addr.Next())
}

var errExhausted = errors.New("every address or port of the range is taken")

// pickAddress chooses an address for the service.
func (r ranges) pickAddress(cidr netip.Prefix, key api.Key, c *claims) (resource, error) {
	size := largestRange
	if bits := cidr.Addr().BitLen() - cidr.Bits(); bits < 20 {
		size = 1 << bits
		if cidr.Addr().Is4() {
			size-- // the broadcast address
		}
	}
	band := staticBand(size, 16, 256)
	return pick(1, size, band, key.String(), func(offset int) (resource, bool) {
		res := resource{addr: addressAt(cidr, uint32(offset))}
		return res, c.free(res)
	})
}

// pickPort chooses a node port for a port of the service. The same port in
// another protocol gets the same number if it can.
func (r ranges) pickPort(protocol corev1.Protocol, port int32, key api.Key, c *claims) (resource, error) {
	size := r.ports[1] - r.ports[0] + 1
	band := staticBand(size, 32, 128)
	return pick(0, size, band, fmt.Sprintf("%s:%d", key, port), func(offset int) (resource, bool) {
		res := nodePort(protocol, int32(r.ports[0]+offset))
		return res, c.free(res)
	})
}

// staticBand is how much of the lower end of a range is left to those who ask
// for an address or port by number, as in Kubernetes: a share of it, not less
// than 16 and not more than most, if it is worth it.
func staticBand(size, share, most int) int {
	if size <= 16 {
		return 0
	}
	return min(max(16, size/share), most)
}

// pick looks for a free offset in [first, size). It begins where the name's hash
// points, above the static band, so that a service gets the same again if it
// comes back, and another one does not get at once what was just freed. The band
// is used last, from its upper end: its low numbers are the popular ones.
func pick(first, size, band int, name string, try func(offset int) (resource, bool)) (resource, error) {
	low := max(first, band)
	hash := fnv.New32a()
	hash.Write([]byte(name))
	start := int(hash.Sum32() % uint32(size-low))
	for i := range size - low {
		if res, ok := try(low + (start+i)%(size-low)); ok {
			return res, nil
		}
	}
	for offset := low - 1; offset >= first; offset-- {
		if res, ok := try(offset); ok {
			return res, nil
		}
	}
	return resource{}, errExhausted
}

// addressAt is the address at an offset in the range.
func addressAt(cidr netip.Prefix, offset uint32) netip.Addr {
	bytes := cidr.Addr().AsSlice()
	last := bytes[len(bytes)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)|offset)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}
