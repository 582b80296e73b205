package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/dataplane/route"
	"github.com/twill-net/twill/plan"
)

// Options say what is to become of the host.
type Options struct {
	Root               string // where its file system is
	NodeName           string // empty: the host's own name
	NodeIPs            []netip.Addr
	PodCIDRs, Services []netip.Prefix
	// Resolve asks the name server for what is not in /etc/hosts.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
}

// Read looks at the host, and at the network namespace of the calling thread. It
// needs root.
func Read(ctx context.Context, o Options) (*Facts, error) {
	f := &Facts{Name: o.NodeName, PodCIDRs: o.PodCIDRs, Services: o.Services, Files: os.DirFS(o.Root),
		Tunnels: []uint16{api.DefaultVXLANPort}, Kubelet: true}
	if f.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		f.Name = name
	}
	var err error
	if f.Resolved = namesakes(f.text("etc/hosts"), f.Name); len(f.Resolved) == 0 {
		if f.Resolved, err = o.Resolve(ctx, f.Name); err != nil {
			f.Resolved = nil // whatever the reason, the name leads nowhere
		}
	}
	if f.Underlay, err = route.DetectUnderlay(o.NodeIPs); err != nil {
		f.NoUnderlay = err.Error()
	}
	f.Processes = processes(f.Files)
	f.Sysctls = readSysctls(f.Underlay.Link)
	if err := f.readNetwork(); err != nil {
		return nil, err
	}
	if err := f.readRules(nft.ReadForeign); err != nil {
		return nil, err
	}
	if f.Kernel, err = probeKernel(); err != nil {
		return nil, err
	}
	f.Synchronised, err = clockIsSynchronised()
	return f, err
}

// readRules reads the rules of others, those of nf_tables in the given way.
func (f *Facts) readRules(foreign func() ([]nft.Foreign, error)) error {
	rules, err := foreign()
	if err != nil && !unsupported(err) {
		return err
	}
	legacy, err := readLegacy()
	f.Rules = append(rules, legacy...)
	return err
}

// unsupported says whether an error is that of a kernel without a feature, which
// probing tells.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// namesakes are the addresses that a file such as /etc/hosts has for a name.
func namesakes(hosts, name string) (out []netip.Addr) {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		a, err := netip.ParseAddr(words[0])
		for _, w := range words[1:] {
			if err == nil && strings.EqualFold(w, name) {
				out = append(out, a.Unmap())
				break
			}
		}
	}
	return out
}

// processes are the names of all processes.
func processes(files fs.FS) map[string]bool {
	out := map[string]bool{}
	entries, _ := fs.ReadDir(files, "proc") // without /proc nothing runs
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		if comm, err := fs.ReadFile(files, path.Join("proc", e.Name(), "comm")); err == nil { // it may have ended
			out[strings.TrimSpace(string(comm))] = true
		}
	}
	return out
}

func (f *Facts) readNetwork() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		link := Link{Name: a.Name, Kind: l.Type(), Index: a.Index, MTU: a.MTU}
		if v, ok := l.(*netlink.Vxlan); ok {
			link.VNI, link.Port = v.VxlanId, v.Port
		}
		f.Links = append(f.Links, link)
	}
	addresses, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("read addresses: %w", err)
	}
	for _, a := range addresses {
		if p, ok := prefixOf(a.IP, a.Mask); ok && !p.Addr().IsLinkLocalUnicast() {
			f.Addresses = append(f.Addresses, Address{names[a.LinkIndex], p})
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		routes, err := h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			if to, ok := prefixOf(r.Dst.IP, r.Dst.Mask); ok && to.Bits() > 0 {
				f.Routes = append(f.Routes, Route{names[r.LinkIndex], to.Masked(), r.Protocol == plan.RouteProtocol})
			}
		}
	}
	return nil
}

func prefixOf(ip, mask []byte) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// clockIsSynchronised asks the kernel, which whoever keeps the clock right tells.
func clockIsSynchronised() (bool, error) {
	const unsynchronised = 0x40 // STA_UNSYNC
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, fmt.Errorf("ask the kernel for the state of the clock: %w", err)
	}
	return t.Status&unsynchronised == 0, nil
}
