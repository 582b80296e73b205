package preflight

import (
	_ "embed" // for sample.yaml
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/dataplane/nft"
	"github.com/twill-net/twill/fabric"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
)

// checkKernel judges what the kernel could not do.
func checkKernel(f *Facts) (string, []Finding) {
	var out []Finding
	var able []string
	for _, feature := range []struct {
		name, problem string
		code          health.Code
		needed        bool
	}{
		{"nftables", f.Kernel.Nftables, health.NftablesMissing, true},
		{"conntrack", f.Kernel.Conntrack, health.ConntrackMissing, true},
		{"veth", f.Kernel.Veth, health.VethMissing, true},
		{"vxlan", f.Kernel.VXLAN, health.VXLANMissing, true},
		{"IPv6", f.Kernel.IPv6, health.IPv6Missing, f.wantsIPv6()},
	} {
		switch {
		case feature.problem == "":
			able = append(able, feature.name)
		case feature.needed:
			out = append(out, found(feature.code, "%s", feature.problem))
		}
	}
	return strings.Join(able, ", "), out
}

func (f *Facts) wantsIPv6() bool {
	for _, p := range append(f.PodCIDRs[:len(f.PodCIDRs):len(f.PodCIDRs)], f.Services...) {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

// probeKernel has the kernel do what Twill asks of it, in a network namespace
// that is gone afterwards. Versions and lists of modules tell less: what is there
// may be built in, loaded on demand, or patched in.
func probeKernel() (Kernel, error) {
	type answer struct {
		kernel Kernel
		err    error
	}
	answers := make(chan answer)
	go func() {
		// The thread is never unlocked, so it ends with its goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			answers <- answer{err: fmt.Errorf("make a network namespace to try the kernel in: %w", err)}
			return
		}
		answers <- answer{kernel: Kernel{
			Nftables: problem(tryNftables()), Conntrack: problem(tryConntrack()),
			Veth: problem(tryVeth()), VXLAN: problem(tryVXLAN()), IPv6: problem(tryIPv6()),
		}}
	}()
	a := <-answers
	return a.kernel, a.err
}

func problem(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// tryNftables writes the rules of a small cluster that asks for everything.
func tryNftables() error {
	k, err := nft.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	p, err := sample()
	if err != nil {
		return err
	}
	_, err = k.Apply(p)
	return err
}

func tryConntrack() error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackTableList(netlink.ConntrackTable, family); err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
	}
	return nil
}

func tryVeth() error {
	a := netlink.NewLinkAttrs()
	a.Name = plan.VethPrefix + "probe"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "probe"}); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	return nil
}

func tryVXLAN() error {
	a := netlink.NewLinkAttrs()
	a.Name = plan.VXLANLink
	if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: a, VxlanId: api.DefaultVNI, Port: api.DefaultVXLANPort}); err != nil {
		return fmt.Errorf("make a vxlan device: %w", err)
	}
	return nil
}

func tryIPv6() error {
	off, err := os.ReadFile(sysctlRoot + "/net/ipv6/conf/all/disable_ipv6")
	if err != nil {
		return fmt.Errorf("IPv6 is not there: %w", err)
	}
	// A new namespace has the value of a host that was started so.
	if strings.TrimSpace(string(off)) != "0" {
		return errors.New("IPv6 is turned off")
	}
	return nil
}

//go:embed sample.yaml
var cluster []byte

// sample is the plan of a node with a pod, a peer, a policy and Services of all
// kinds, for both families.
func sample() (*plan.Plan, error) {
	objects, err := api.Decode(cluster, "default")
	if err != nil {
		return nil, err
	}
	p := plan.NewPlanner("node01")
	p.SetUnderlay(fabric.Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}})
	for _, o := range objects {
		p.Put(o.Object)
	}
	p.SetLocal(plan.Local{
		Pod: api.Key{Namespace: "default", Name: "web"}, HostInterface: plan.VethPrefix + "probe", MTU: 1450,
		Addrs:  []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")},
		Labels: map[string]string{"app": "web"},
	})
	return p.Flush(), nil
}
