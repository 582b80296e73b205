package cni

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twill-net/twill/api"
)

func TestWhatTheAttacherIsTold(t *testing.T) {
	base := Attachment{ID: podID, Network: "twill", NetNS: "/run/netns/blue", Namespace: "default", Pod: "0123456789abc"}
	for _, c := range []struct {
		name   string
		args   string
		config []string
		want   func(*Attachment)
	}{
		{name: "nothing", want: func(*Attachment) {}},
		{name: "kubernetes",
			args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0.x;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=u-1;COLOUR=red;",
			want: func(a *Attachment) { a.Namespace, a.Pod, a.UID = "shop", "cart-0.x", "u-1" }},
		{name: "args", args: "IP=10.244.9.9/24;MAC=02:00:00:00:00:01",
			want: func(a *Attachment) {
				a.Want, a.MAC = []netip.Addr{netip.MustParseAddr("10.244.9.9")}, "02:00:00:00:00:01"
			}},
		{name: "the first place counts", args: "IP=10.244.9.9;MAC=02:00:00:00:00:01",
			config: []string{`"args":{"cni":{"ips":["10.244.8.8"]}}`, `"runtimeConfig":{"ips":["10.244.7.7/16","fd00::7"],"mac":"02:00:00:00:00:02"}`},
			want: func(a *Attachment) {
				a.Want = []netip.Addr{netip.MustParseAddr("10.244.7.7"), netip.MustParseAddr("fd00::7")}
				a.MAC = "02:00:00:00:00:02"
			}},
		{name: "labels and ports",
			config: []string{
				`"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"},{"hostPort":0,"containerPort":81},{"hostPort":5353,"containerPort":53,"protocol":"udp"}]}`,
				`"args":{"cni":{"labels":[{"key":"app","value":"nginx"},{"key":"twill.io/zone","value":""}]},"twill.io":{"ports":[{"name":"http","protocol":"TCP","port":80},{"name":"dns","protocol":"UDP","port":53},{"port":9090}]}}`},
			want: func(a *Attachment) {
				a.Labels = map[string]string{"app": "nginx", "twill.io/zone": ""}
				a.Ports = []api.WorkloadEndpointPort{
					{Name: "http", Protocol: "TCP", Port: 80, HostPort: 8080, HostIP: "127.0.0.1"},
					{Name: "dns", Protocol: "UDP", Port: 53, HostPort: 5353},
					{Protocol: "TCP", Port: 9090},
				}
			}},
		{name: "one port on two host ports",
			config: []string{`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":80},{"hostPort":2,"containerPort":80}]}`},
			want: func(a *Attachment) {
				a.Ports = []api.WorkloadEndpointPort{{Protocol: "TCP", Port: 80, HostPort: 1}, {Protocol: "TCP", Port: 80, HostPort: 2}}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeAttacher{}
			req := addRequest("1.0.0", c.config...)
			req.Args = c.args
			wantCode(t, call(t, serve(t, f), req), 0)
			want := base
			c.want(&want)
			got, _ := f.get(podID)
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPodName(t *testing.T) {
	for id, want := range map[string]string{
		"0123456789abcdef": "0123456789abc",
		"web-1":            "web-1",
		"Upper_Case.id":    "upper-case-id",
		"abcdefghijkl-mno": "abcdefghijkl",
	} {
		if got := podName(id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
}

func TestConflist(t *testing.T) {
	goldenJSON(t, "conflist.json", Conflist(""))
	goldenJSON(t, "conflist-socket.json", Conflist("/run/lab/cni.sock"))
}
