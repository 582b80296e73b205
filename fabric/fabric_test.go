package fabric

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
)

func self() Self {
	return Self{Name: "master", Underlay: Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("172.16.10.10/24"), netip.MustParsePrefix("fd00:172:16:10::10/64"),
	}}}
}

func peer(name string, addrs ...string) Peer {
	p := Peer{Name: name}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
	}
	p.Receives = Receives(Self{Name: name, Underlay: Underlay{Link: "eth0", MTU: 1500, Prefixes: []netip.Prefix{netip.PrefixFrom(p.Addrs[0], 24)}}}, ConfigFrom(nil))
	return p
}

func TestChoose(t *testing.T) {
	near := peer("node01", "172.16.10.11", "fd00:172:16:10::11")
	far := peer("node02", "172.16.20.12")
	silent := Peer{Name: "node03", Addrs: near.Addrs}
	otherVNI := near
	otherVNI.Receives = api.Receives{"vxlan": {MAC: "02:00:00:00:00:01", VNI: 7, Port: 8472}}
	hostGWFirst := Config{Preference: []string{"host-gw", "vxlan"}, VNI: 1, Port: 8472}

	for _, c := range []struct {
		name    string
		config  Config
		peer    Peer
		mode    api.EncapsulationMode
		v6      bool
		want    string // back end, link, next hop
		wantErr string
	}{
		{name: "default is vxlan", config: ConfigFrom(nil), peer: near, want: "vxlan twill-vxlan 172.16.10.11"},
		{name: "IPv6 pods over an IPv4 tunnel", config: ConfigFrom(nil), peer: far, v6: true, want: "vxlan twill-vxlan " + linkLocal(tunnelMAC("node02")).String()},
		{name: "host-gw on one link", config: hostGWFirst, peer: near, want: "host-gw eth0 172.16.10.11"},
		{name: "host-gw for IPv6", config: hostGWFirst, peer: near, v6: true, want: "host-gw eth0 fd00:172:16:10::11"},
		{name: "host-gw first, but another link", config: hostGWFirst, peer: far, want: "vxlan twill-vxlan 172.16.20.12"},
		{name: "cross subnet, near", config: ConfigFrom(nil), peer: near, mode: api.EncapCrossSubnet, want: "host-gw eth0 172.16.10.11"},
		{name: "cross subnet, far", config: ConfigFrom(nil), peer: far, mode: api.EncapCrossSubnet, want: "vxlan twill-vxlan 172.16.20.12"},
		{name: "always", config: hostGWFirst, peer: near, mode: api.EncapAlways, want: "vxlan twill-vxlan 172.16.10.11"},
		{name: "never, far", config: ConfigFrom(nil), peer: far, mode: api.EncapNever, wantErr: "host-gw: 172.16.20.12 is not on the same link as this node"},
		{name: "a peer that publishes nothing", config: ConfigFrom(nil), peer: silent, wantErr: "vxlan: the peer does not receive it; host-gw: the peer does not receive it"},
		{name: "another VNI", config: ConfigFrom(nil), peer: otherVNI, wantErr: "vxlan: the peer receives VNI 7 on port 8472, we send VNI 1 to port 8472"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, err := Choose(self(), c.config, c.peer, c.mode, c.v6)
			if c.wantErr != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.wantErr) {
					t.Fatalf("got %+v, %v; want error %q", path, err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := path.Backend + " " + path.Link + " " + path.NextHop.String(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestPodMTU(t *testing.T) {
	onlyV6 := self()
	onlyV6.Underlay.Prefixes = onlyV6.Underlay.Prefixes[1:]
	for _, c := range []struct {
		name   string
		self   Self
		config Config
		modes  []api.EncapsulationMode
		want   int
	}{
		{"vxlan over IPv4", self(), ConfigFrom(nil), nil, 1450},
		{"vxlan over IPv6", onlyV6, ConfigFrom(nil), nil, 1430},
		{"host-gw alone", self(), Config{Preference: []string{"host-gw"}}, nil, 1500},
		{"host-gw first, vxlan possible", self(), Config{Preference: []string{"host-gw", "vxlan"}}, nil, 1450},
		{"host-gw alone, but a pool that says Always", self(), Config{Preference: []string{"host-gw"}}, []api.EncapsulationMode{"", api.EncapAlways}, 1450},
		{"host-gw alone, but a pool across subnets", self(), Config{Preference: []string{"host-gw"}}, []api.EncapsulationMode{api.EncapCrossSubnet}, 1450},
		{"vxlan, but the only pool says Never", self(), ConfigFrom(nil), []api.EncapsulationMode{api.EncapNever}, 1500},
	} {
		if got := PodMTU(c.self, c.config, c.modes); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestTunnelMACIsUnicastAndLocallyAdministered(t *testing.T) {
	for _, name := range []string{"master", "node01", "node02", ""} {
		m := tunnelMAC(name)
		if m[0]&0x01 != 0 || m[0]&0x02 == 0 {
			t.Errorf("%q: %s", name, m)
		}
	}
}
