package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// view is what columns show besides the object itself.
type view struct {
	now    time.Time
	blocks map[string][]string // node → prefixes of its blocks
}

// newView fetches what the columns of the kind need.
func (s *Session) newView(ctx context.Context, st store.Store, kind *api.Kind) (view, error) {
	v := view{now: s.now()}
	if kind != api.NodeKind {
		return v, nil
	}
	blocks, err := listOf[*api.IPAMBlock](ctx, st, api.IPAMBlockKind, "")
	if err != nil {
		return v, err
	}
	v.blocks = map[string][]string{}
	for _, b := range blocks {
		if node, ok := b.Owner(); ok {
			v.blocks[node] = append(v.blocks[node], b.Spec.CIDR)
		}
	}
	return v, nil
}

func (v view) age(obj api.Object) string { return age(v.now, obj.GetCreationTimestamp()) }

func age(now time.Time, created metav1.Time) string {
	if created.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(created.Time))
}

// column is one column of a kind's table.
type column struct {
	title string
	wide  bool // only with -o wide
	value func(view, api.Object) string
}

func col[T api.Object](title string, value func(T) string) column {
	return column{title, false, func(_ view, obj api.Object) string { return value(obj.(T)) }}
}

func wide(c column) column {
	c.wide = true
	return c
}

var (
	nameColumn = column{title: "NAME", value: func(_ view, obj api.Object) string { return obj.GetName() }}
	ageColumn  = column{title: "AGE", value: func(v view, obj api.Object) string { return v.age(obj) }}
)

// columnsOf are the columns of a kind's table, all of them.
func columnsOf(kind *api.Kind) []column {
	columns := []column{nameColumn}
	switch kind {
	case api.WorkloadEndpointKind:
		columns = append(columns, podColumns()...)
	case api.ServiceKind:
		columns = append(columns,
			col("TYPE", func(s *corev1.Service) string { return string(s.Spec.Type) }),
			col("CLUSTER-IP", func(s *corev1.Service) string { return orNone(s.Spec.ClusterIP) }),
			col("EXTERNAL-IP", externalAddresses),
			col("PORT(S)", servicePorts),
			ageColumn,
			wide(col("SELECTOR", func(s *corev1.Service) string { return formatLabels(s.Spec.Selector) })))
		return columns
	case api.EndpointSliceKind:
		columns = append(columns,
			col("ADDRESSTYPE", func(s *discoveryv1.EndpointSlice) string { return string(s.AddressType) }),
			col("PORTS", slicePorts),
			col("ENDPOINTS", sliceEndpoints))
	case api.NetworkPolicyKind:
		columns = append(columns,
			col("POD-SELECTOR", func(p *networkingv1.NetworkPolicy) string {
				return metav1.FormatLabelSelector(&p.Spec.PodSelector)
			}),
			col("TYPES", policyTypes))
	case api.NodeKind:
		columns = append(columns,
			col("ADDRESSES", nodeAddresses),
			col("RECEIVES", nodeReceives),
			column{title: "BLOCKS", value: func(v view, obj api.Object) string { return orNone(firstFew(v.blocks[obj.GetName()], 3)) }})
	case api.IPPoolKind:
		columns = append(columns, poolColumns()...)
		return columns
	case api.IPAMBlockKind:
		columns = append(columns,
			col("CIDR", func(b *api.IPAMBlock) string { return b.Spec.CIDR }),
			col("NODE", func(b *api.IPAMBlock) string { node, _ := b.Owner(); return orNone(node) }))
	case api.FabricConfigurationKind:
		columns = append(columns, col("PREFERENCE", func(f *api.FabricConfiguration) string {
			return orNone(strings.Join(f.Spec.Preference, ","))
		}))
	case api.LeaseKind:
		columns = append(columns, col("HOLDER", leaseHolder))
	}
	return append(columns, ageColumn)
}

func podColumns() []column {
	return []column{
		col("IP", func(w *api.WorkloadEndpoint) string { return orNone(strings.Join(podAddresses(w), ",")) }),
		col("NODE", func(w *api.WorkloadEndpoint) string { return orNone(w.Spec.Node) }),
		wide(col("CONTAINER", func(w *api.WorkloadEndpoint) string {
			return orNone(w.Spec.ContainerID[:min(12, len(w.Spec.ContainerID))])
		})),
		wide(col("INTERFACE", func(w *api.WorkloadEndpoint) string { return orNone(w.Spec.InterfaceName) })),
		wide(col("MAC", func(w *api.WorkloadEndpoint) string { return orNone(w.Spec.MAC) })),
	}
}

func poolColumns() []column {
	return []column{
		col("CIDR", func(p *api.IPPool) string { return p.Spec.CIDR }),
		col("BLOCKSIZE", func(p *api.IPPool) string { return strconv.Itoa(p.Spec.BlockSize) }),
		col("NAT", func(p *api.IPPool) string { return strconv.FormatBool(p.Spec.NATOutgoing) }),
		col("DISABLED", func(p *api.IPPool) string { return strconv.FormatBool(p.Spec.Disabled) }),
		wide(col("VXLAN", func(p *api.IPPool) string { return orNone(string(p.Spec.VXLANMode)) })),
		col("SELECTOR", func(p *api.IPPool) string { return orNone(p.Spec.NodeSelector) }),
		wide(ageColumn),
	}
}

// podAddresses are a pod's addresses without the prefix length, which is
// always that of one address.
func podAddresses(w *api.WorkloadEndpoint) []string {
	var out []string
	for _, text := range w.Spec.IPNetworks {
		address, _, _ := strings.Cut(text, "/")
		out = append(out, address)
	}
	return out
}

func externalAddresses(s *corev1.Service) string {
	addresses := slices.Clone(s.Spec.ExternalIPs)
	for _, in := range s.Status.LoadBalancer.Ingress {
		addresses = append(addresses, in.IP+in.Hostname)
	}
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case len(addresses) == 0 && s.Spec.Type == corev1.ServiceTypeLoadBalancer:
		return "<pending>"
	}
	return orNone(strings.Join(addresses, ","))
}

func servicePorts(s *corev1.Service) string {
	var ports []string
	for _, p := range s.Spec.Ports {
		text := strconv.Itoa(int(p.Port))
		if p.NodePort != 0 {
			text += ":" + strconv.Itoa(int(p.NodePort))
		}
		ports = append(ports, text+"/"+string(p.Protocol))
	}
	return orNone(strings.Join(ports, ","))
}

func slicePorts(s *discoveryv1.EndpointSlice) string {
	var ports []string
	for _, p := range s.Ports {
		if p.Port != nil {
			ports = append(ports, strconv.Itoa(int(*p.Port)))
		}
	}
	return orNone(firstFew(ports, 3))
}

func sliceEndpoints(s *discoveryv1.EndpointSlice) string {
	var addresses []string
	for _, e := range s.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	return orNone(firstFew(addresses, 3))
}

func policyTypes(p *networkingv1.NetworkPolicy) string {
	var types []string
	for _, t := range p.Spec.PolicyTypes {
		types = append(types, string(t))
	}
	return orNone(strings.Join(types, ","))
}

func nodeAddresses(n *corev1.Node) string {
	var addresses []string
	for _, a := range api.NodeAddresses(n) {
		addresses = append(addresses, a.String())
	}
	return orNone(strings.Join(addresses, ","))
}

func nodeReceives(n *corev1.Node) string {
	receives, err := api.NodeReceives(n)
	if err != nil {
		return "<unreadable>"
	}
	return orNone(strings.Join(slices.Sorted(maps.Keys(receives)), ","))
}

func leaseHolder(l *coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return none
	}
	return orNone(*l.Spec.HolderIdentity)
}

func formatLabels(m map[string]string) string {
	return orNone(labels.Set(m).String())
}

// firstFew joins at most n words, and says how many more there are.
func firstFew(words []string, n int) string {
	if len(words) <= n {
		return strings.Join(words, ",")
	}
	return fmt.Sprintf("%s + %d more", strings.Join(words[:n], ","), len(words)-n)
}
