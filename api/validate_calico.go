package api

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/twill-net/twill/api/selector"
)

func validateIPPool(p *IPPool) field.ErrorList {
	path, s := field.NewPath("spec"), &p.Spec
	errs := validateCanonicalPrefix(path.Child("cidr"), s.CIDR)
	if len(errs) == 0 {
		errs = append(errs, validateBlockSize(path.Child("blockSize"), s.BlockSize, netip.MustParsePrefix(s.CIDR))...)
	}
	if _, err := selector.ParseSelector(s.NodeSelector); err != nil {
		errs = append(errs, field.Invalid(path.Child("nodeSelector"), s.NodeSelector, err.Error()))
	}
	modes := []EncapsulationMode{EncapAlways, EncapCrossSubnet, EncapNever}
	if s.VXLANMode != "" && !slices.Contains(modes, s.VXLANMode) {
		errs = append(errs, field.NotSupported(path.Child("vxlanMode"), s.VXLANMode, modes))
	}
	return append(errs, validateMeaningless(path, s)...)
}

// validateMeaningless refuses what a pool may say in Calico and Twill does not
// do, but for the values that ask for nothing.
func validateMeaningless(path *field.Path, s *IPPoolSpec) field.ErrorList {
	var errs field.ErrorList
	refuse := func(name, reason string) {
		errs = append(errs, field.Forbidden(path.Child(name), reason))
	}
	if s.IPIPMode != "" && s.IPIPMode != EncapNever {
		refuse("ipipMode", fmt.Sprintf("%s is not possible: there is no IPIP back end; use vxlanMode, and ipipMode: Never or none", s.IPIPMode))
	}
	if len(s.AllowedUses) > 0 && !slices.Equal(s.AllowedUses, []string{"Workload"}) {
		refuse("allowedUses", "only [Workload] is possible: pools give addresses to pods, not to tunnels or load balancers")
	}
	if s.AssignmentMode != "" && s.AssignmentMode != "Automatic" {
		refuse("assignmentMode", fmt.Sprintf("%s is not possible: pools are used for every pod; use disabled: true to keep a pool out of use", s.AssignmentMode))
	}
	if selected, err := selector.ParseSelector(s.NamespaceSelector); err != nil || selected.String() != "all()" {
		refuse("namespaceSelector", "only all() is possible: pools are chosen by node, not by namespace")
	}
	if s.DisableBGPExport {
		refuse("disableBGPExport", "true is not possible: no pool is exported by BGP")
	}
	return errs
}

func validateCanonicalPrefix(path *field.Path, text string) field.ErrorList {
	if text == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return validation.IsValidCIDR(path, text)
}

// validateBlockSize: the bounds are Calico's. A block must fit into the pool.
func validateBlockSize(path *field.Path, size int, pool netip.Prefix) field.ErrorList {
	low, high := 116, 128
	if pool.Addr().Is4() {
		low, high = 20, 32
	}
	switch {
	case size < low || size > high:
		return field.ErrorList{field.Invalid(path, size, validation.InclusiveRangeError(low, high))}
	case size < pool.Bits():
		return field.ErrorList{field.Invalid(path, size, fmt.Sprintf("must be at least the prefix length of cidr, %d: a block is a part of the pool", pool.Bits()))}
	}
	return nil
}

// ValidatePools lists the overlaps of pools: an address in two of them could be
// given out twice. Pools whose cidr is invalid are left out. The errors are for
// the pools with the given index.
func ValidatePools(pools []*IPPool) map[int]field.ErrorList {
	type ranged struct {
		netip.Prefix
		index int
	}
	var sorted []ranged
	for i, p := range pools {
		if prefix, err := netip.ParsePrefix(p.Spec.CIDR); err == nil {
			sorted = append(sorted, ranged{prefix.Masked(), i})
		}
	}
	// Two prefixes overlap only if one contains the other, so that in this
	// order a prefix directly follows those that contain it.
	slices.SortStableFunc(sorted, func(a, b ranged) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	errs := map[int]field.ErrorList{}
	path := field.NewPath("spec", "cidr")
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1], sorted[i]
		if !a.Overlaps(b.Prefix) {
			continue
		}
		errs[a.index] = append(errs[a.index], field.Invalid(path, a.String(), "overlaps IPPool "+pools[b.index].Name+" ("+b.String()+")"))
		errs[b.index] = append(errs[b.index], field.Invalid(path, b.String(), "overlaps IPPool "+pools[a.index].Name+" ("+a.String()+")"))
		if a.Bits() <= b.Bits() {
			sorted[i] = a // the wider one may contain the next, too
		}
	}
	return errs
}

// NodePrefixes lists what a node says of the addresses that must stay reachable:
// those of its status, and the networks that they are part of by its
// UnderlayAnnotation. Text that can't be understood is left out.
func NodePrefixes(n *corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err == nil && ip.Zone() == "" {
			out = append(out, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
		}
	}
	var underlay struct {
		Prefixes []netip.Prefix `json:"prefixes"`
	}
	if json.Unmarshal([]byte(n.Annotations[UnderlayAnnotation]), &underlay) == nil {
		for _, p := range underlay.Prefixes {
			out = append(out, p.Masked())
		}
	}
	return out
}

// ValidatePool lists what of the nodes and Services overlaps a pool: a block of the
// pool would be routed over the addresses of nodes, and pods would have addresses of
// Services. Each node and Service is named once, and no more than five of them.
func ValidatePool(p *IPPool, nodes []*corev1.Node, services []*corev1.Service) field.ErrorList {
	pool, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return nil // Validate tells
	}
	const most = 5
	var errs field.ErrorList
	refuse := func(what string) bool {
		errs = append(errs, field.Invalid(field.NewPath("spec", "cidr"), p.Spec.CIDR, "overlaps "+what+": choose a range that is not in use"))
		return len(errs) < most
	}
	for _, n := range nodes {
		for _, used := range NodePrefixes(n) {
			if !pool.Overlaps(used) || used.Bits() < pool.Bits() {
				continue // a part of a wider network may be set aside for pods
			}
			what := fmt.Sprintf("the address %s of node %s", used.Addr(), n.Name)
			if !used.IsSingleIP() {
				what = fmt.Sprintf("%s, the network of node %s", used, n.Name)
			}
			if !refuse(what) {
				return errs
			}
			break
		}
	}
	for _, s := range services {
		for _, text := range s.Spec.ClusterIPs {
			if ip, err := netip.ParseAddr(text); err == nil && pool.Contains(ip) {
				if !refuse(fmt.Sprintf("the cluster IP %s of Service %s/%s", ip, s.Namespace, s.Name)) {
					return errs
				}
				break
			}
		}
	}
	return errs
}

func validateIPAMBlock(b *IPAMBlock) field.ErrorList {
	path := field.NewPath("spec")
	errs := validateCanonicalPrefix(path.Child("cidr"), b.Spec.CIDR)
	affinity := path.Child("affinity")
	node, ok := b.Owner()
	if !ok {
		return append(errs, field.Invalid(affinity, b.Spec.Affinity, "must be host: and the name of a node"))
	}
	return append(errs, invalid(affinity, b.Spec.Affinity, validation.IsDNS1123Subdomain(node))...)
}

func validateWorkloadEndpoint(w *WorkloadEndpoint) field.ErrorList {
	path, s := field.NewPath("spec"), &w.Spec
	var errs field.ErrorList
	if s.Node == "" {
		errs = append(errs, field.Required(path.Child("node"), ""))
	} else {
		errs = append(errs, invalid(path.Child("node"), s.Node, validation.IsDNS1123Subdomain(s.Node))...)
	}
	if s.MAC != "" {
		if mac, err := net.ParseMAC(s.MAC); err != nil || len(mac) != 6 {
			errs = append(errs, field.Invalid(path.Child("mac"), s.MAC, "must be an Ethernet address such as 02:00:00:00:00:01"))
		}
	}
	for i, text := range s.IPNetworks {
		at := path.Child("ipNetworks").Index(i)
		bad := validateCanonicalPrefix(at, text)
		if len(bad) == 0 && !netip.MustParsePrefix(text).IsSingleIP() {
			bad = append(bad, field.Invalid(at, text, "must be one address: /32 for IPv4, /128 for IPv6"))
		}
		if slices.Contains(s.IPNetworks[:i], text) {
			bad = append(bad, field.Duplicate(at, text))
		}
		errs = append(errs, bad...)
	}
	for i, p := range s.Ports {
		at := path.Child("ports").Index(i)
		if p.Name != "" {
			errs = append(errs, invalid(at.Child("name"), p.Name, validation.IsValidPortName(p.Name))...)
		}
		errs = append(errs, validateProtocol(at.Child("protocol"), p.Protocol)...)
		errs = append(errs, validatePort(at.Child("port"), p.Port)...)
		if p.HostPort != 0 {
			errs = append(errs, validatePort(at.Child("hostPort"), p.HostPort)...)
		}
		if p.HostIP != "" {
			errs = append(errs, validation.IsValidIP(at.Child("hostIP"), p.HostIP)...)
		}
	}
	return errs
}
