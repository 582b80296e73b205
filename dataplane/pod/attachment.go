package pod

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Attachment is a pod's interface.
type Attachment struct {
	NetNS         string // path of the pod's network namespace
	PodInterface  string // its name in the pod, such as "eth0"
	HostInterface string // see HostInterfaceName
	ContainerID   string // kept with the host end, for List
	PodMAC        plan.MAC
	Addresses     []netip.Prefix // single addresses: /32 or /128
	MTU           int            // bytes
}

// HostInterfaceName is the name of the host end for an interface of a
// container: the same for the same arguments, and at most 15 bytes, the
// kernel's limit.
func HostInterfaceName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifName))
	// 12 characters are 60 bits.
	return plan.VethPrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:12]
}

func (a Attachment) validate() error {
	switch {
	case !strings.HasPrefix(a.HostInterface, plan.VethPrefix) || len(a.HostInterface) >= unix.IFNAMSIZ:
		return fmt.Errorf("host interface name %q: want %s and at most %d bytes in all", a.HostInterface, plan.VethPrefix, unix.IFNAMSIZ-1)
	case a.PodInterface == "" || len(a.PodInterface) >= unix.IFNAMSIZ || strings.ContainsAny(a.PodInterface, "/: \t\n") ||
		a.PodInterface == "." || a.PodInterface == "..":
		return fmt.Errorf("interface name %q: want 1 to %d bytes without slash, colon and space", a.PodInterface, unix.IFNAMSIZ-1)
	case strings.ContainsAny(a.ContainerID, "/ \t\n"):
		return fmt.Errorf("container id %q: slash and space are not allowed", a.ContainerID)
	case a.PodMAC == plan.MAC{}:
		return errors.New("a pod needs an Ethernet address")
	case len(a.Addresses) == 0:
		return errors.New("a pod needs at least one address")
	case a.MTU < 68 || a.MTU > 65535:
		return fmt.Errorf("MTU %d is out of range (68 to 65535)", a.MTU)
	}
	for _, p := range a.Addresses {
		if !p.IsSingleIP() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("pod address %s: want a /32 or /128", p)
		}
		if p.Addr().Is6() && a.MTU < 1280 {
			return fmt.Errorf("MTU %d is too small for IPv6, which needs 1280 (RFC 8200 §5)", a.MTU)
		}
	}
	return nil
}

// families are the next hops of the families that the pod has.
func (a Attachment) families() (next []netip.Addr) {
	var v4, v6 bool
	for _, p := range a.Addresses {
		v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
	}
	if v4 {
		next = append(next, netip.MustParseAddr(plan.PodGateway4))
	}
	if v6 {
		next = append(next, netip.MustParseAddr(plan.PodGateway6))
	}
	return next
}

// aliasMax is the longest ifalias (IFALIASZ less the NUL).
const aliasMax = 255

// alias is what the host end carries, so that after a crash it tells which pod
// it is of: "<container>/<interface> <address>,<address> <netns>".
func (a Attachment) alias() string {
	var addrs []string
	for _, p := range a.Addresses {
		addrs = append(addrs, p.Addr().String())
	}
	s := a.ContainerID + "/" + a.PodInterface + " " + strings.Join(addrs, ",")
	if full := s + " " + a.NetNS; len(full) <= aliasMax {
		return full
	}
	return s // the path only helps people
}

// Attached is a host end that is there.
type Attached struct {
	HostInterface string
	ContainerID   string // empty if its maker crashed before it could note it
	PodInterface  string
	Addresses     []netip.Addr
	NetNS         string // may be empty
	Up            bool
}

func parseAlias(s string) (a Attached) {
	id, rest, _ := strings.Cut(s, " ")
	addrs, path, _ := strings.Cut(rest, " ")
	var ok bool
	if a.ContainerID, a.PodInterface, ok = strings.Cut(id, "/"); !ok {
		return Attached{}
	}
	a.NetNS = path
	for _, text := range strings.Split(addrs, ",") {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.Is4In6() {
			return Attached{} // nothing that we write
		}
		a.Addresses = append(a.Addresses, addr)
	}
	return a
}

// List returns our host ends in the network namespace of the calling thread,
// with what their attachment noted on them.
func List() ([]Attached, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list pods' interfaces: %w", err)
	}
	defer h.Close()
	var links []netlink.Link
	for range 5 {
		// A list that was interrupted by a change may have holes, and what is
		// missing in it would be taken for gone.
		if links, err = h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list pods' interfaces: %w", err)
	}
	var out []Attached
	for _, l := range links {
		attrs := l.Attrs()
		if l.Type() != plan.LinkVeth || !strings.HasPrefix(attrs.Name, plan.VethPrefix) {
			continue
		}
		a := parseAlias(attrs.Alias)
		a.HostInterface, a.Up = attrs.Name, attrs.RawFlags&unix.IFF_UP != 0
		out = append(out, a)
	}
	return out, nil
}
