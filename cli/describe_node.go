package cli

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

func (d *describeCommand) describeNode(ctx context.Context, st store.Store, p *page, n *corev1.Node) error {
	p.field("Addresses", nodeAddresses(n))
	receives, err := api.NodeReceives(n)
	if err != nil {
		return err
	}
	var backends []string
	for _, name := range slices.Sorted(maps.Keys(receives)) {
		backends = append(backends, name+receiveText(receives[name]))
	}
	p.list("Receives", backends)
	blocks, err := listOf[*api.IPAMBlock](ctx, st, api.IPAMBlockKind, "")
	if err != nil {
		return err
	}
	var owned []string
	for _, b := range blocks {
		if node, ok := b.Owner(); ok && node == n.Name {
			owned = append(owned, b.Spec.CIDR)
		}
	}
	p.list("Blocks", owned)
	conditions := &table{columns: []string{"TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"}}
	for _, c := range n.Status.Conditions {
		conditions.add(string(c.Type), string(c.Status), age(d.now(), c.LastTransitionTime), orNone(c.Reason), orNone(c.Message))
	}
	p.line("")
	p.rows("Conditions", conditions)
	pods, err := listOf[*api.WorkloadEndpoint](ctx, st, api.WorkloadEndpointKind, "")
	if err != nil {
		return err
	}
	here := &table{columns: []string{"NAMESPACE", "NAME", "IP"}}
	for _, pod := range pods {
		if pod.Spec.Node == n.Name {
			here.add(pod.Namespace, pod.Name, orNone(strings.Join(podAddresses(pod), ",")))
		}
	}
	p.rows("Pods", here)
	return nil
}

func receiveText(r api.ReceiveParameters) string {
	var words []string
	if r.MAC != "" {
		words = append(words, "MAC "+r.MAC)
	}
	if r.VNI != 0 {
		words = append(words, fmt.Sprintf("identifier %d", r.VNI))
	}
	if r.Port != 0 {
		words = append(words, fmt.Sprintf("port %d", r.Port))
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, ", ") + ")"
}

func describePool(ctx context.Context, st store.Store, p *page, pool *api.IPPool) error {
	p.field("CIDR", pool.Spec.CIDR)
	p.field("Block size", fmt.Sprintf("/%d", pool.Spec.BlockSize))
	p.field("Nodes", pool.Spec.NodeSelector)
	p.field("Masquerade", map[bool]string{true: "what leaves pools and nodes", false: "nothing"}[pool.Spec.NATOutgoing])
	p.field("New addresses", map[bool]string{true: "no: the pool is disabled", false: "yes"}[pool.Spec.Disabled])
	p.field("VXLAN", orNone(string(pool.Spec.VXLANMode)))
	prefix, err := netip.ParsePrefix(pool.Spec.CIDR)
	if err != nil {
		return fmt.Errorf("ippool %s: cidr: %w", pool.Name, err)
	}
	blocks, err := listOf[*api.IPAMBlock](ctx, st, api.IPAMBlockKind, "")
	if err != nil {
		return err
	}
	pods, err := listOf[*api.WorkloadEndpoint](ctx, st, api.WorkloadEndpointKind, "")
	if err != nil {
		return err
	}
	used, total := podsByBlock(prefix, pool.Spec.BlockSize, pods)
	t := &table{columns: []string{"BLOCK", "NODE", "PODS"}}
	for _, b := range blocks {
		block, err := netip.ParsePrefix(b.Spec.CIDR)
		if err != nil || !prefix.Overlaps(block) {
			continue
		}
		node, _ := b.Owner()
		t.add(b.Spec.CIDR, orNone(node), fmt.Sprint(used[block]))
	}
	p.field("In use", fmt.Sprintf("%d addresses of pods, %d of %s blocks", total, len(t.rows), powerOfTwo(pool.Spec.BlockSize-prefix.Bits())))
	p.line("")
	p.rows("Blocks", t)
	return nil
}

// podsByBlock counts the addresses of pods in each block of a pool, and in all.
func podsByBlock(pool netip.Prefix, blockSize int, pods []*api.WorkloadEndpoint) (used map[netip.Prefix]int, total int) {
	used = map[netip.Prefix]int{}
	for _, pod := range pods {
		for _, text := range pod.Spec.IPNetworks {
			address, err := netip.ParsePrefix(text)
			if err != nil || !pool.Contains(address.Addr()) {
				continue
			}
			total++
			if block, err := address.Addr().Prefix(blockSize); err == nil {
				used[block]++
			}
		}
	}
	return used, total
}

// powerOfTwo prints 2^n; an IPv6 pool may have more blocks than a word counts.
func powerOfTwo(n int) string {
	if n < 0 || n > 30 {
		return fmt.Sprintf("2^%d", n)
	}
	return fmt.Sprint(1 << n)
}
