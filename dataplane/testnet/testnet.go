// Package testnet gives tests network namespaces of their own, so that they
// can use the real kernel and send real packets without touching the host's
// network. A namespace lives as long as its test: it is held by a file
// descriptor, has no name and leaves nothing behind, whatever ends the test.
//
// It is for tests only; nothing that runs in production imports it.
package testnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	fd     netns.NsHandle
	handle *netlink.Handle
}

// New makes a namespace whose loopback is up, and destroys it when the test
// ends. The test is skipped if it may not make one.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	ns := &NS{fd: netns.None()}
	if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		ns.fd, err = netns.Get()
		return err
	}); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.fd.Close() })
	var err error
	if ns.handle, err = netlink.NewHandleAt(ns.fd); err != nil {
		t.Fatalf("open netlink in a new namespace: %v", err)
	}
	t.Cleanup(ns.handle.Close)
	ns.up(t, "lo")
	// Without this the first packet over a new IPv6 link waits a second or two
	// for duplicate address detection of the link-local address.
	for _, scope := range []string{"all", "default"} {
		ns.Sysctl(t, "ipv6/conf/"+scope+"/accept_dad", "0")
	}
	return ns
}

// FD is the descriptor that holds the namespace, for setns(2) and for netlink
// requests that name a namespace. It belongs to the NS.
func (ns *NS) FD() int { return int(ns.fd) }

// Netlink is a connection to the namespace's kernel. It belongs to the NS.
func (ns *NS) Netlink() *netlink.Handle { return ns.handle }

// Do runs f on the calling goroutine, in the namespace, so f may end the test.
// Sockets opened and programs started in f stay in the namespace; goroutines
// started in f are not in it. Calls nest, and /proc/sys/net is the
// namespace's.
func (ns *NS) Do(f func()) {
	err := onThread(func() error { return netns.Set(ns.fd) }, func() error { f(); return nil })
	if err != nil {
		panic(fmt.Sprintf("enter a test's network namespace: %v", err))
	}
}

// onThread runs f on this goroutine after enter has moved its thread to
// another namespace, and brings the thread back, also when f panics or ends
// the test.
func onThread(enter, f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		defer home.Close()
		// A thread that can't go home stays locked: the runtime destroys it
		// with its goroutine rather than lend it to somebody else.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	if err := enter(); err != nil {
		return err
	}
	return f()
}

// Cmd is an exec.Cmd that runs in a namespace.
type Cmd struct {
	*exec.Cmd
	ns *NS
}

// Command prepares a program that will run in the namespace.
func (ns *NS) Command(name string, args ...string) *Cmd {
	return &Cmd{exec.Command(name, args...), ns}
}

// Start is exec.Cmd.Start in the namespace; the other methods that start the
// program are so too.
func (c *Cmd) Start() (err error) {
	c.ns.Do(func() { err = c.Cmd.Start() })
	return err
}

// Run is exec.Cmd.Run.
func (c *Cmd) Run() (err error) {
	c.ns.Do(func() { err = c.Cmd.Run() })
	return err
}

// Output is exec.Cmd.Output.
func (c *Cmd) Output() (out []byte, err error) {
	c.ns.Do(func() { out, err = c.Cmd.Output() })
	return out, err
}

// CombinedOutput is exec.Cmd.CombinedOutput.
func (c *Cmd) CombinedOutput() (out []byte, err error) {
	c.ns.Do(func() { out, err = c.Cmd.CombinedOutput() })
	return out, err
}

// Pair joins two namespaces by a veth pair whose ends have the given names, are
// up and ready for both families.
func Pair(t testing.TB, a, b *NS, nameA, nameB string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.FD())}
	if err := a.handle.LinkAdd(veth); err != nil {
		t.Fatalf("make the pair %s, %s: %v", nameA, nameB, err)
	}
	a.up(t, nameA)
	b.up(t, nameB)
	a.ready(t, nameA, net.IP.IsLinkLocalUnicast)
	b.ready(t, nameB, net.IP.IsLinkLocalUnicast)
}

// ready waits for a device's IPv6 address. The kernel makes it usable some time
// after it was added, or after the carrier came for a link-local one; before,
// neighbour discovery loses the first packet.
func (ns *NS) ready(t testing.TB, name string, is func(net.IP) bool) {
	t.Helper()
	link := ns.link(t, name)
	deadline := time.After(5 * time.Second)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		addrs, err := ns.handle.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			t.Fatalf("list the addresses of %s: %v", name, err)
		}
		for _, a := range addrs {
			if is(a.IP) && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return
			}
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s did not get its address: is IPv6 disabled?", name)
		}
	}
}

func (ns *NS) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	link, err := ns.handle.LinkByName(name)
	if err != nil {
		t.Fatalf("find link %s: %v", name, err)
	}
	return link
}

func (ns *NS) up(t testing.TB, name string) {
	t.Helper()
	if err := ns.handle.LinkSetUp(ns.link(t, name)); err != nil {
		t.Fatalf("bring %s up: %v", name, err)
	}
}

// Address gives a device an address, such as "10.0.0.1/24", that can be used
// at once.
func (ns *NS) Address(t testing.TB, link, prefix string) {
	t.Helper()
	addr := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(prefix))}
	if err := ns.handle.AddrAdd(ns.link(t, link), addr); err != nil {
		t.Fatalf("add address %s to %s: %v", prefix, link, err)
	}
	if addr.IP.To4() == nil {
		ns.ready(t, link, addr.IP.Equal)
	}
}

// Route adds a route to a prefix by way of a next hop's address.
func (ns *NS) Route(t testing.TB, prefix, nextHop string) {
	t.Helper()
	route := &netlink.Route{Dst: ipNet(netip.MustParsePrefix(prefix)), Gw: netip.MustParseAddr(nextHop).AsSlice()}
	if err := ns.handle.RouteAdd(route); err != nil {
		t.Fatalf("add route %s via %s: %v", prefix, nextHop, err)
	}
}

// Sysctl sets a value below /proc/sys/net, such as "ipv4/ip_forward".
func (ns *NS) Sysctl(t testing.TB, path, value string) {
	t.Helper()
	ns.Do(func() {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0o644); err != nil {
			t.Fatalf("set sysctl: %v", err)
		}
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
