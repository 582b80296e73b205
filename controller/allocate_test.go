package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"github.com/twill-net/twill/api"
)

func clusterIP(text string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.ClusterIP = text }
}

func ofType(t corev1.ServiceType, nodePorts ...int32) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.Type = t
		for i, p := range nodePorts {
			s.Ports[i].NodePort = p
		}
	}
}

func ports(ports ...corev1.ServicePort) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Ports = ports }
}

func policy(p corev1.IPFamilyPolicy, families ...corev1.IPFamily) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		if p != "" {
			s.IPFamilyPolicy = &p
		}
		s.IPFamilies = families
	}
}

// condition is the reason and message of the AllocatedCondition; empty: none.
func condition(s *corev1.Service) string {
	if c := apimeta.FindStatusCondition(s.Status.Conditions, AllocatedCondition); c != nil {
		return c.Reason + ": " + c.Message
	}
	return ""
}

func TestAddresses(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		external := svc("external", ofType(corev1.ServiceTypeExternalName), func(s *corev1.ServiceSpec) { s.ExternalName = "example.com" })
		c.create(svc("auto"), svc("dns", clusterIP("10.1.0.10")), svc("headless", clusterIP("None")), external,
			svc("foreign", clusterIP("10.2.0.1")), svc("network", clusterIP("10.1.0.0")), svc("broadcast", clusterIP("10.1.255.255")))
		c.settle()
		auto := get(c, svc("auto")).Spec
		if !single.ServiceCIDRs[0].Contains(netip.MustParseAddr(auto.ClusterIP)) || !slices.Equal(auto.ClusterIPs, []string{auto.ClusterIP}) {
			c.Errorf("given %q", auto.ClusterIPs)
		}
		if netip.MustParseAddr(auto.ClusterIP).Less(netip.MustParseAddr("10.1.1.0")) {
			c.Errorf("%s is in the band for those who ask", auto.ClusterIP)
		}
		if *auto.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack || !slices.Equal(auto.IPFamilies, []corev1.IPFamily{"IPv4"}) {
			c.Errorf("families: %v %v", *auto.IPFamilyPolicy, auto.IPFamilies)
		}
		if dns := get(c, svc("dns")); dns.Spec.ClusterIP != "10.1.0.10" || condition(dns) != "" {
			c.Errorf("asked for 10.1.0.10: %v %s", dns.Spec.ClusterIPs, condition(dns))
		}
		if s := get(c, svc("headless")).Spec; s.ClusterIP != "None" || len(s.IPFamilies) != 0 {
			c.Errorf("headless: %+v", s)
		}
		if s := get(c, external); s.Spec.ClusterIP != "" || s.Generation != 1 {
			c.Errorf("external: %+v", s.Spec)
		}
		for _, name := range []string{"foreign", "network", "broadcast"} {
			if s := get(c, svc(name)); !strings.HasPrefix(condition(s), "OutOfRange: ") || s.Spec.ClusterIP == "" {
				c.Errorf("%s: %q, %q", name, s.Spec.ClusterIP, condition(s))
			}
		}
		// The same service gets the same address when it comes back.
		c.remove(svc("auto"))
		c.settle()
		c.create(svc("auto"))
		c.settle()
		if again := get(c, svc("auto")).Spec.ClusterIP; again != auto.ClusterIP {
			c.Errorf("first %s, then %s", auto.ClusterIP, again)
		}
	})
}

func TestFamilies(t *testing.T) {
	const (
		single4 = "SingleStack [IPv4] 4"
		single6 = "SingleStack [IPv6] 6"
	)
	for name, test := range map[string]struct {
		change func(*corev1.ServiceSpec)
		want   string // in the dual-stack cluster
		alone  string // in the IPv4 cluster, if it differs
	}{
		"default":     {func(*corev1.ServiceSpec) {}, single4, ""},
		"IPv6":        {policy("", "IPv6"), single6, "[IPv6]  Unavailable"},
		"IPv6 by IP":  {clusterIP("fd00:1::77"), single6, "SingleStack [IPv6] 6 OutOfRange"},
		"prefer":      {policy("PreferDualStack"), "PreferDualStack [IPv4 IPv6] 46", "PreferDualStack [IPv4] 4"},
		"prefer IPv6": {policy("PreferDualStack", "IPv6"), "PreferDualStack [IPv6 IPv4] 64", "PreferDualStack [IPv6]  Unavailable"},
		"require":     {policy("RequireDualStack"), "RequireDualStack [IPv4 IPv6] 46", "RequireDualStack [IPv4] 4 Unavailable"},
		"both":        {policy("", "IPv6", "IPv4"), "RequireDualStack [IPv6 IPv4] 64", "[IPv6 IPv4]  Unavailable"},
		"trimmed": {func(s *corev1.ServiceSpec) {
			policy("SingleStack", "IPv4", "IPv6")(s)
			s.ClusterIPs = []string{"10.1.0.7", "fd00:1::7"}
			s.ClusterIP = "10.1.0.7"
		}, single4, ""},
	} {
		for config, want := range map[*Config]string{&dual: test.want, &single: test.alone} {
			if want == "" {
				want = test.want
			}
			t.Run(fmt.Sprintf("%s/%d", name, len(config.ServiceCIDRs)), func(t *testing.T) {
				inCluster(t, func(c *cluster) {
					c.create(svc("web", test.change))
					c.control(*config)
					s := get(c, svc("web"))
					got := ""
					if s.Spec.IPFamilyPolicy != nil {
						got = string(*s.Spec.IPFamilyPolicy) + " "
					}
					got += fmt.Sprint(s.Spec.IPFamilies) + " "
					for _, ip := range s.Spec.ClusterIPs {
						if netip.MustParseAddr(ip).Is4() {
							got += "4"
						} else {
							got += "6"
						}
					}
					reason, _, _ := strings.Cut(condition(s), ":")
					if got = strings.TrimSpace(got + " " + reason); got != want {
						c.Errorf("got %q, want %q (%s)", got, want, condition(s))
					}
				})
			})
		}
	}
}

func TestGainsSecondFamily(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(dual)
		c.create(svc("web"))
		c.settle()
		first := get(c, svc("web")).Spec.ClusterIP
		edit(c, svc("web"), func(s *corev1.Service) { policy("PreferDualStack")(&s.Spec) })
		c.settle()
		s := get(c, svc("web")).Spec
		if len(s.ClusterIPs) != 2 || s.ClusterIPs[0] != first {
			c.Errorf("first %s, then %v", first, s.ClusterIPs)
		}
		edit(c, svc("web"), func(s *corev1.Service) { policy("SingleStack", s.Spec.IPFamilies...)(&s.Spec) })
		c.settle()
		if s := get(c, svc("web")).Spec; !slices.Equal(s.ClusterIPs, []string{first}) || len(s.IPFamilies) != 1 {
			c.Errorf("in the end %v %v", s.ClusterIPs, s.IPFamilies)
		}
	})
}

func TestNodePorts(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
		none := false
		c.create(
			svc("asked", ofType("NodePort", 30080)),
			svc("auto", ofType("NodePort")),
			svc("balanced", ofType("LoadBalancer")),
			svc("bare", ofType("LoadBalancer"), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = &none }),
			svc("dns", ofType("NodePort"), ports(corev1.ServicePort{Name: "t", Port: 53, Protocol: tcp}, corev1.ServicePort{Name: "u", Port: 53, Protocol: udp})),
			svc("udp", ofType("NodePort"), ports(corev1.ServicePort{Port: 80, Protocol: udp, NodePort: 30080})),
			svc("out", ofType("NodePort", 80)),
		)
		var many []corev1.ServicePort
		for i := range 300 {
			many = append(many, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(i + 1)})
		}
		c.create(svc("many", ofType("NodePort"), ports(many...)))
		c.settle()
		used := map[string]string{}
		for _, obj := range c.list(api.ServiceKind) {
			s := obj.(*corev1.Service)
			for _, p := range s.Spec.Ports {
				if p.NodePort == 0 {
					if s.Name != "bare" {
						c.Errorf("%s has no node port", s.Name)
					}
					continue
				}
				number := fmt.Sprint(p.NodePort, protocolOr(p.Protocol))
				if other, ok := used[number]; ok {
					c.Errorf("%s and %s both have %s", other, s.Name, number)
				}
				used[number] = s.Name
				if s.Name != "out" && s.Name != "asked" && s.Name != "udp" && (p.NodePort < FirstNodePort+86 || p.NodePort > LastNodePort) {
					c.Errorf("%s was given %d", s.Name, p.NodePort)
				}
			}
			if c := condition(s); (c != "") != (s.Name == "out") {
				t.Errorf("%s: condition %q", s.Name, c)
			}
		}
		if used["30080TCP"] != "asked" || used["30080UDP"] != "udp" {
			c.Errorf("port 30080: %q, %q", used["30080TCP"], used["30080UDP"])
		}
		if dns := get(c, svc("dns")).Spec.Ports; dns[0].NodePort != dns[1].NodePort {
			c.Errorf("one port in two protocols: %d, %d", dns[0].NodePort, dns[1].NodePort)
		}
	})
}

func TestConflict(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		c.create(svc("old", clusterIP("10.1.0.10"), ofType("NodePort", 30080)))
		c.settle()
		c.create(svc("new", clusterIP("10.1.0.10"), ofType("NodePort", 30080)))
		c.settle()
		if got := condition(get(c, svc("old"))); got != "" {
			c.Errorf("the first has a condition: %s", got)
		}
		want := "Taken: 10.1.0.10 belongs to service default/old; node port 30080/TCP belongs to service default/old"
		if got := condition(get(c, svc("new"))); got != want {
			c.Errorf("condition %q, want %q", got, want)
		}
		edit(c, svc("new"), func(s *corev1.Service) { s.Annotations = map[string]string{"touched": "yes"} })
		c.settle()
		if n := c.log.count("can't have"); n != 1 {
			c.Errorf("logged %d times", n)
		}
		c.remove(svc("old"))
		c.settle()
		s := get(c, svc("new"))
		if got := condition(s); got != "" || s.Spec.ClusterIP != "10.1.0.10" {
			c.Errorf("after the first went: %q, %s", got, s.Spec.ClusterIP)
		}
	})
}

func TestExhausted(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/29")}, NodePortRange: [2]int{30000, 30003}})
		for i := range 8 {
			c.create(svc(fmt.Sprint("s", i)))
			c.settle()
		}
		addresses := map[string]bool{}
		var starved []string
		for _, obj := range c.list(api.ServiceKind) {
			s := obj.(*corev1.Service)
			if s.Spec.ClusterIP == "" {
				starved = append(starved, s.Name+" "+condition(s))
			}
			addresses[s.Spec.ClusterIP] = true
		}
		if got := strings.Join(starved, ", "); got != "s6 Exhausted: no address is left in 10.1.0.0/29, s7 Exhausted: no address is left in 10.1.0.0/29" {
			c.Error(got)
		}
		if len(addresses) != 7 { // six, and none
			c.Errorf("given: %v", addresses)
		}
		freed := get(c, svc("s3")).Spec.ClusterIP
		c.remove(svc("s3"), svc("s7"))
		c.settle()
		if s := get(c, svc("s6")); s.Spec.ClusterIP != freed || condition(s) != "" {
			c.Errorf("%s was freed; s6: %q %s", freed, s.Spec.ClusterIP, condition(s))
		}
		c.create(svc("ports", clusterIP("None"), ports()))
		for i := range 5 {
			c.create(svc(fmt.Sprint("n", i), clusterIP("10.1.0.1"), ofType("NodePort")))
			c.settle()
		}
		if got := condition(get(c, svc("n4"))); !strings.Contains(got, "no node port is left in 30000-30003") {
			c.Error(got)
		}
	})
}

func TestRestartWritesNothing(t *testing.T) {
	inCluster(t, func(c *cluster) {
		stop := c.control(dual)
		for i := range 40 {
			name := fmt.Sprint("s", i)
			c.create(svc(name, ofType("NodePort"), policy("PreferDualStack")), wep(name, name, i+1))
		}
		c.create(svc("taken", clusterIP("10.1.0.9")), svc("taker", clusterIP("10.1.0.9")))
		c.settle()
		stop()
		before := c.revision()
		c.control(dual)
		if after := c.revision(); after != before {
			c.Errorf("revision %s, then %s", before, after)
		}
	})
}

func TestPickReachesAll(t *testing.T) {
	for _, cidr := range []string{"10.1.0.0/29", "10.1.0.0/24", "10.1.7.0/25", "fd00::/120"} {
		prefix := netip.MustParsePrefix(cidr)
		r := ranges{cidrs: []netip.Prefix{prefix}}
		c := newClaims()
		var given []netip.Addr
		for i := 0; ; i++ {
			key := api.Key{Namespace: "default", Name: fmt.Sprint(i)}
			res, err := r.pickAddress(prefix, key, c)
			if err != nil {
				break
			}
			if !r.contains(res.addr) {
				t.Fatalf("%s: picked %s", cidr, res.addr)
			}
			c.replace(key, epoch, []resource{res})
			given = append(given, res.addr)
		}
		want := 1<<(prefix.Addr().BitLen()-prefix.Bits()) - 1
		if prefix.Addr().Is4() {
			want--
		}
		if len(given) != want {
			t.Errorf("%s: gave %d addresses, want %d", cidr, len(given), want)
		}
		if last := given[len(given)-1]; want > 16 && last != prefix.Addr().Next() {
			t.Errorf("%s: the last given is %s", cidr, last)
		}
	}
}

// TestHealthCheckPorts: a load balancer with external policy Local gets a port
// for its health check, which is nobody's node port.
func TestHealthCheckPorts(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.control(single)
		local := func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
		asking := func(port int32) func(*corev1.ServiceSpec) {
			return func(s *corev1.ServiceSpec) { s.HealthCheckNodePort = port }
		}
		c.create(svc("plain", ofType(corev1.ServiceTypeLoadBalancer)),
			svc("auto", ofType(corev1.ServiceTypeLoadBalancer), local),
			svc("asks", ofType(corev1.ServiceTypeLoadBalancer), local, asking(30777)))
		c.settle()
		late := svc("late", ofType(corev1.ServiceTypeNodePort, 30777))
		c.create(late)
		c.settle()
		plain, auto, asks := get(c, svc("plain")).Spec, get(c, svc("auto")).Spec, get(c, svc("asks")).Spec
		if plain.HealthCheckNodePort != 0 {
			c.Errorf("without policy Local: port %d", plain.HealthCheckNodePort)
		}
		if p := auto.HealthCheckNodePort; p < 30000 || p > 32767 || p == auto.Ports[0].NodePort {
			c.Errorf("given %d beside node port %d", p, auto.Ports[0].NodePort)
		}
		if asks.HealthCheckNodePort != 30777 {
			c.Errorf("asked for 30777, given %d", asks.HealthCheckNodePort)
		}
		if got := condition(get(c, late)); !strings.Contains(got, "belongs to service default/asks") {
			c.Errorf("a node port that is somebody's health check: %q", got)
		}
	})
}
