package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/api"
)

// Facts is what a cluster is.
type Facts struct {
	Server, Version string
	Nodes           []corev1.Node
	Pods, Services  Ranges
	DaemonSets      []appsv1.DaemonSet
	Pools           []api.IPPool
}

// Ranges are what somebody has said that addresses are from.
type Ranges struct {
	List []netip.Prefix
	From string // who said so
}

// Detect looks at the cluster.
func (c *Cluster) Detect(ctx context.Context) (*Facts, error) {
	f := &Facts{Server: c.server}
	var v version.Info
	if _, err := c.get(ctx, "/version", &v); err != nil {
		return nil, err
	}
	f.Version = v.GitVersion
	var nodes corev1.NodeList
	var sets appsv1.DaemonSetList
	var services networkingv1.ServiceCIDRList
	var controllers corev1.PodList
	var pools struct{ Items []api.IPPool }
	err := errors.Join(
		c.list(ctx, "/api/v1/nodes", "", &nodes),
		c.list(ctx, "/apis/apps/v1/daemonsets", "", &sets),
		c.list(ctx, "/apis/networking.k8s.io/v1/servicecidrs", "", &services), // from 1.33 on
		c.list(ctx, "/api/v1/namespaces/"+namespace+"/pods", "component in (kube-controller-manager,kube-apiserver)", &controllers),
		c.list(ctx, "/apis/projectcalico.org/v3/ippools", "", &pools),
	)
	if err != nil {
		return nil, err
	}
	var kubeadm corev1.ConfigMap
	if _, err := c.get(ctx, "/api/v1/namespaces/"+namespace+"/configmaps/kubeadm-config", &kubeadm); err != nil {
		return nil, err
	}
	var kubernetes corev1.Service
	if _, err := c.get(ctx, "/api/v1/namespaces/default/services/kubernetes", &kubernetes); err != nil {
		return nil, err
	}
	f.Nodes, f.DaemonSets, f.Pools = nodes.Items, sets.Items, pools.Items
	f.Pods = podRanges(kubeadm, controllers.Items, nodes.Items)
	f.Services = serviceRanges(services.Items, kubeadm, controllers.Items, kubernetes)
	return f, nil
}

// podRanges believes kubeadm's configuration first, then a flag of the controller
// manager, then guesses from what nodes were given.
func podRanges(kubeadm corev1.ConfigMap, controllers []corev1.Pod, nodes []corev1.Node) Ranges {
	if list := parse(kubeadmNetworking(kubeadm).PodSubnet); len(list) > 0 {
		return Ranges{list, "ConfigMap kubeadm-config"}
	}
	if list := parse(flag(controllers, "--cluster-cidr")); len(list) > 0 {
		return Ranges{list, "--cluster-cidr of kube-controller-manager"}
	}
	var given []netip.Prefix
	for _, n := range nodes {
		given = append(given, parse(strings.Join(n.Spec.PodCIDRs, ","))...)
	}
	if list := around(given); len(list) > 0 {
		return Ranges{list, "guessed from spec.podCIDRs of nodes"}
	}
	return Ranges{}
}

func serviceRanges(objects []networkingv1.ServiceCIDR, kubeadm corev1.ConfigMap, controllers []corev1.Pod, kubernetes corev1.Service) Ranges {
	for _, o := range objects {
		if list := parse(strings.Join(o.Spec.CIDRs, ",")); o.Name == "kubernetes" && len(list) > 0 {
			return Ranges{list, "ServiceCIDR kubernetes"}
		}
	}
	if list := parse(kubeadmNetworking(kubeadm).ServiceSubnet); len(list) > 0 {
		return Ranges{list, "ConfigMap kubeadm-config"}
	}
	if list := parse(flag(controllers, "--service-cluster-ip-range")); len(list) > 0 {
		return Ranges{list, "--service-cluster-ip-range of kube-apiserver"}
	}
	for _, ip := range kubernetes.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			return Ranges{[]netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, "the address of Service kubernetes, of a range that is not known"}
		}
	}
	return Ranges{}
}

type networking struct {
	PodSubnet     string `json:"podSubnet"`
	ServiceSubnet string `json:"serviceSubnet"`
}

// kubeadmNetworking is what a cluster was made with. A configuration that can't be
// read says nothing.
func kubeadmNetworking(m corev1.ConfigMap) networking {
	var c struct {
		Networking networking `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(m.Data["ClusterConfiguration"]), &c); err != nil {
		return networking{}
	}
	return c.Networking
}

// flag is the value of a flag of a control plane that runs in pods.
func flag(pods []corev1.Pod, name string) string {
	for _, p := range pods {
		for _, c := range p.Spec.Containers {
			for _, word := range append(slices.Clone(c.Command), c.Args...) {
				if value, ok := strings.CutPrefix(word, name+"="); ok {
					return value
				}
			}
		}
	}
	return ""
}

// parse passes over what is no range.
func parse(text string) (out []netip.Prefix) {
	for _, one := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		if p, err := netip.ParsePrefix(strings.TrimSpace(one)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// around is for each family the range with all given ones in it: a /16 for IPv4
// and a /56 for IPv6, as most clusters have, or larger. Where they are far from
// each other there is none.
func around(given []netip.Prefix) (out []netip.Prefix) {
	for _, usual := range []int{16, 56} {
		var all netip.Prefix
		for _, p := range given {
			if p.Addr().Is4() != (usual == 16) {
				continue
			}
			if !all.IsValid() {
				all = netip.PrefixFrom(p.Addr(), min(usual, p.Bits())).Masked()
			}
			for !all.Contains(p.Addr()) || all.Bits() > p.Bits() {
				all = netip.PrefixFrom(all.Addr(), all.Bits()-1).Masked()
			}
		}
		if all.IsValid() && all.Bits() >= usual/2 {
			out = append(out, all)
		}
	}
	return out
}

// networks are the DaemonSets of other networks, by how they are called.
var networks = map[string]string{
	"kube-flannel-ds": "flannel", "kube-flannel": "flannel", "calico-node": "Calico", "canal": "Canal", "cilium": "Cilium",
	"kube-router": "kube-router", "weave-net": "Weave", "antrea-agent": "Antrea", "kindnet": "kindnet", "aws-node": "the VPC CNI of AWS",
	"ovnkube-node": "OVN-Kubernetes",
}

// servicesSetting decides whether agents serve Services beside a kube-proxy.
const servicesSetting = "TWILL_SERVICES"

// serviceProxy is where the cluster's kube-proxy is, if it has one.
func (f *Facts) serviceProxy() string {
	for _, d := range f.DaemonSets {
		if d.Name == "kube-proxy" && d.Namespace == namespace {
			return d.Namespace + "/" + d.Name
		}
	}
	return ""
}

// Obstacle is what is in the way of an installation.
type Obstacle struct {
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// obstacles judges a cluster in which pods get addresses from these ranges.
func (f *Facts) obstacles(o Options) (out []Obstacle) {
	for _, d := range f.DaemonSets {
		if networks[d.Name] != "" {
			out = append(out, Obstacle{fmt.Sprintf("DaemonSet %s/%s is %s, another network for pods", d.Namespace, d.Name, networks[d.Name]),
				"remove it as its documentation says; then twill preflight on each node tells what is left of it"})
		}
	}
	if where := f.serviceProxy(); where != "" && o.Settings[servicesSetting] == "on" {
		out = append(out, Obstacle{fmt.Sprintf("DaemonSet %s serves Services, and so would Twill", where),
			"delete it, or leave out " + servicesSetting})
	}
	for _, p := range o.PodCIDRs {
		for _, s := range f.Services.List {
			if p.Overlaps(s) {
				out = append(out, Obstacle{fmt.Sprintf("pods' range %s overlaps that of Services, %s", p, s), "say another --pod-cidr"})
			}
		}
		for _, n := range f.Nodes {
			for _, a := range api.NodeAddresses(&n) {
				if p.Contains(a) {
					out = append(out, Obstacle{fmt.Sprintf("pods' range %s has the address of node %s, %s, in it", p, n.Name, a), "say another --pod-cidr"})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Obstacle) int { return cmp.Compare(a.What, b.What) })
	return out
}
