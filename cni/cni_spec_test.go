package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store"
)

// Each test quotes, in short, what the specification says.

// "cniVersion: the same version supplied on input"; §5 "ADD Success" of each
// version.
func TestResultOfEachVersion(t *testing.T) {
	for _, version := range client.Versions {
		t.Run(version, func(t *testing.T) {
			socket := serve(t, &fakeAttacher{})
			reply := call(t, socket, addRequest(version))
			wantCode(t, reply, 0)
			goldenJSON(t, "add-"+version+".json", reply.result)
			if _, err := create.Create(version, reply.result); err != nil {
				t.Errorf("the runtimes' library does not read it: %v", err)
			}
		})
	}
}

// "1: Incompatible CNI version". 0.1.0 and 0.2.0 have another kind of result.
func TestIncompatibleVersions(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	for _, version := range []string{"", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "x"} {
		for _, command := range []string{client.Add, client.Del, client.Check, client.GC, client.Status} {
			wantCode(t, call(t, socket, as(addRequest(version), command)), client.CodeIncompatibleVersion)
		}
	}
}

// "spec-v0.4.0: Introduce the CHECK command"; GC and STATUS came with 1.1.0.
func TestCommandsOfEachVersion(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	for i, version := range client.Versions {
		for command, first := range map[string]int{client.Check: 1, client.GC: 3, client.Status: 3} {
			req := as(addRequest(version, `"cni.dev/valid-attachments":[]`), command)
			reply := call(t, socket, req)
			refused := reply.failure != nil && reply.failure.Code == client.CodeIncompatibleVersion
			if refused != (i < first) {
				t.Errorf("%s in %s: %v", command, version, reply.failure)
			}
		}
	}
}

// "If an interface of the requested name already exists in the container, the
// CNI plugin MUST return with an error."
func TestAddTwice(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	wantCode(t, call(t, socket, addRequest("1.0.0")), 0)
	wantCode(t, call(t, socket, addRequest("1.0.0")), client.CodeAttached)
	second := addRequest("1.0.0")
	second.IfName = "eth1"
	wantCode(t, call(t, socket, second), 0)
}

// "If the plugin was supplied a prevResult ..., it MUST handle prevResult by
// either passing it through, or modifying it appropriately."
func TestAddAfterAnotherPlugin(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	prev := `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"lo","sandbox":"/run/netns/blue","pciID":"0"}],` +
		`"ips":[{"address":"127.0.0.1/8","interface":0}],"dns":{"nameservers":["10.1.0.10"]}}`
	reply := call(t, socket, addRequest("1.0.0", prev))
	wantCode(t, reply, 0)
	goldenJSON(t, "add-chained.json", reply.result)
	other := addRequest("1.0.0", `"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/run/netns/blue"}]}`)
	other.ContainerID = "other"
	wantCode(t, call(t, socket, other), client.CodeInvalidConfig)
	wantCode(t, call(t, socket, addRequest("1.0.0", `"prevResult":7`)), client.CodeDecode)
}

// "Plugins MUST accept multiple DEL calls for the same pair, and return success
// if the interface in question ... [is] missing." "Plugins should still return
// without error if prevResult is empty." CNI_NETNS is optional for DEL.
func TestDel(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	wantCode(t, call(t, socket, addRequest("1.0.0")), 0)
	for range 3 {
		req := as(addRequest("1.0.0", `"prevResult":{}`), client.Del)
		req.NetNS, req.Args = "", "nonsense"
		reply := call(t, socket, req)
		wantCode(t, reply, 0)
		if len(reply.result) > 0 {
			t.Errorf("DEL has a result: %s", reply.result)
		}
	}
	if _, ok := f.get(podID); ok {
		t.Error("still attached")
	}
	f.fail = errors.New("the kernel does not want to")
	wantCode(t, call(t, socket, as(addRequest("1.0.0"), client.Del)), client.CodeFailed)
}

// "The plugin must consult the prevResult to determine the expected interfaces
// and addresses."
func TestCheck(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	for _, version := range client.Versions[1:] {
		f.attached = nil
		result := call(t, socket, addRequest(version)).result
		check := as(addRequest(version, `"prevResult":`+string(result)), client.Check)
		reply := call(t, socket, check)
		wantCode(t, reply, 0)
		if len(reply.result) > 0 {
			t.Errorf("CHECK has a result: %s", reply.result)
		}
		want := podAttached
		if version != "1.1.0" {
			want.MTU = 0 // not in the result
		}
		if diff := cmp.Diff(want, f.checked[len(f.checked)-1], cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s: Check was told (-want +got):\n%s", version, diff)
		}
	}
	wantCode(t, call(t, socket, as(addRequest("1.0.0"), client.Check)), client.CodeInvalidConfig)
	wantCode(t, call(t, socket, as(addRequest("1.0.0", `"prevResult":{"interfaces":[{"name":"eth7","sandbox":"x"}]}`), client.Check)), client.CodeInvalidConfig)
	for _, broken := range []string{`7`, `{"interfaces":7}`, `{"interfaces":[7]}`, `{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[7]}`, `{"interfaces":[{"name":"eth0","sandbox":"x"}],"routes":[7]}`} {
		wantCode(t, call(t, socket, as(addRequest("1.0.0", `"prevResult":`+broken), client.Check)), client.CodeDecode)
	}
}

// "3: Container unknown or does not exist."
func TestCheckOfTheUnknown(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	prev := `"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/run/netns/blue"}]}`
	wantCode(t, call(t, socket, as(addRequest("1.0.0", prev), client.Check)), client.CodeUnknownContainer)
}

// "cni.dev/valid-attachments: The list of still valid attachments to this
// network"
func TestGC(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	for _, id := range []string{"a", "b", "c"} {
		req := addRequest("1.1.0")
		req.ContainerID = id
		wantCode(t, call(t, socket, req), 0)
	}
	other := addRequest("1.1.0")
	other.Config = json.RawMessage(strings.Replace(string(other.Config), `"twill"`, `"other"`, 1))
	wantCode(t, call(t, socket, other), 0)
	gc := request{Command: client.GC, Config: configOf("1.1.0", `"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0","more":1}]`, `"cni.dev/attachments":[]`)}
	wantCode(t, call(t, socket, gc), 0)
	if diff := cmp.Diff([]ID{{"b", "eth0"}}, f.kept); diff != "" || f.network != "twill" {
		t.Errorf("network %q, keep (-want +got):\n%s", f.network, diff)
	}
	if len(f.attached) != 2 {
		t.Errorf("attached are %v, want b and the other network's", f.attached)
	}
	gc.Config = configOf("1.1.0")
	wantCode(t, call(t, socket, gc), client.CodeInvalidConfig)
	f.fail = errors.New("two could not be removed")
	gc.Config = configOf("1.1.0", `"cni.dev/valid-attachments":[]`)
	wantCode(t, call(t, socket, gc), client.CodeFailed)
}

// "50: The plugin is not available (i.e. cannot service ADD requests)", "51:
// ... and existing containers in the network may have limited connectivity".
func TestStatus(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	status := request{Command: client.Status, Config: configOf("1.1.0")}
	wantCode(t, call(t, socket, status), 0)
	f.fail = ipam.ErrExhausted
	wantCode(t, call(t, socket, status), client.CodeNotAvailable)
	f.fail = fmt.Errorf("no route to other nodes: %w", ErrLimited)
	wantCode(t, call(t, socket, status), client.CodeLimited)
}

// "4: Invalid necessary environment variables ... The error message must
// contain the names of invalid variables."
func TestInvalidVariables(t *testing.T) {
	socket := serve(t, &fakeAttacher{})
	for _, c := range []struct {
		variable string
		change   func(*request)
	}{
		{"CNI_COMMAND", func(r *request) { r.Command = "add" }},
		{"CNI_COMMAND", func(r *request) { r.Command = "" }},
		{"CNI_CONTAINERID", func(r *request) { r.ContainerID = "" }},
		{"CNI_CONTAINERID", func(r *request) { r.ContainerID = "../x" }},
		{"CNI_CONTAINERID", func(r *request) { r.ContainerID = "a b" }},
		{"CNI_CONTAINERID", func(r *request) { r.ContainerID = strings.Repeat("a", 256) }},
		{"CNI_IFNAME", func(r *request) { r.IfName = "" }},
		{"CNI_IFNAME", func(r *request) { r.IfName = "a/b" }},
		{"CNI_IFNAME", func(r *request) { r.IfName = ".." }},
		{"CNI_IFNAME", func(r *request) { r.IfName = "sixteencharacter" }},
		{"CNI_NETNS", func(r *request) { r.NetNS = "" }},
		{"CNI_ARGS", func(r *request) { r.Args = "K8S_POD_NAME" }},
		{"CNI_ARGS", func(r *request) { r.Args = "COLOUR=red" }},
		{"CNI_ARGS", func(r *request) { r.Args = "K8S_POD_NAMESPACE=../etc;IgnoreUnknown=1" }},
		{"CNI_ARGS", func(r *request) { r.Args = "IP=ten" }},
		{"CNI_ARGS", func(r *request) { r.Args = "MAC=ff:ff:ff:ff:ff:ff" }},
	} {
		req := addRequest("1.0.0")
		c.change(&req)
		reply := call(t, socket, req)
		wantCode(t, reply, client.CodeInvalidEnvironment)
		if reply.failure != nil && !strings.Contains(reply.failure.Msg, c.variable) {
			t.Errorf("%q does not name %s", reply.failure.Msg, c.variable)
		}
	}
}

// "2: Unsupported field in network configuration. The error message must
// contain the key and value of the unsupported field." "Plugins ... may
// generate an error if called with unknown fields": 7.
func TestFieldsOfTheConfiguration(t *testing.T) {
	for _, c := range []struct {
		field string
		code  int
	}{
		{`"ipam":{"type":"host-local"}`, client.CodeUnsupportedField},
		{`"ipam":{}`, 0},
		{`"ipMasq":true`, client.CodeUnsupportedField},
		{`"ipMasq":false`, 0},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":1000}}`, client.CodeUnsupportedField},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":0,"egressRate":0}}`, 0},
		{`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/8"}]]}`, client.CodeUnsupportedField},
		{`"runtimeConfig":{"dns":{"servers":["8.8.8.8"]}}`, client.CodeUnsupportedField},
		{`"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":80}]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"portMappings":[{"hostPort":7000,"containerPort":0}]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"x"}]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"colour":"red"}]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"portMappings":7}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"ips":["10.0.0.1","10.0.0.2"]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"ips":["fe80::1%eth0"]}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"mac":"01:00:00:00:00:00"}`, client.CodeInvalidConfig},
		{`"runtimeConfig":{"mac":""}`, 0},
		{`"runtimeConfig":7`, client.CodeInvalidConfig},
		{`"args":{"cni":{"labels":[{"key":"a b","value":"c"}]}}`, client.CodeInvalidConfig},
		{`"args":{"twill.io":{"ports":[{"port":0}]}}`, client.CodeInvalidConfig},
		{`"args":{"twill.io":{"ports":[{"port":80,"name":"Not A Name"}]}}`, client.CodeInvalidConfig},
		{`"args":{"others":{"anything":7}}`, 0},
		{`"colour":"red"`, client.CodeInvalidConfig},
		{`"Socket":"x"`, client.CodeInvalidConfig},
		{`"socket":"/run/x"`, 0},
		{`"socket":7`, client.CodeInvalidConfig},
		{`"dns":{"nameservers":["10.1.0.10"],"domain":"cluster.local"}`, 0},
		{`"dns":{"servers":["10.1.0.10"]}`, client.CodeInvalidConfig},
		{`"capabilities":{"mac":true},"disableCheck":true,"cniVersions":["1.0.0"]`, 0},
		{`"cni.dev/something":7`, 0},
		{`"name":"../x"`, client.CodeInvalidConfig},
	} {
		socket := serve(t, &fakeAttacher{})
		reply := call(t, socket, addRequest("1.0.0", c.field))
		t.Log(c.field)
		wantCode(t, reply, c.code)
		if c.code == client.CodeUnsupportedField && reply.failure != nil {
			for _, word := range strings.FieldsFunc(c.field, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzRMP0123456789-.", r) }) {
				if word != "runtimeConfig" && !strings.Contains(reply.failure.Msg, word) {
					t.Errorf("message %q has no %q", reply.failure.Msg, word)
				}
			}
		}
	}
	wantCode(t, call(t, serve(t, &fakeAttacher{}), request{Command: client.Status, Config: json.RawMessage(`{"cniVersion":"1.1.0"}`)}), client.CodeInvalidConfig)
	wantCode(t, call(t, serve(t, &fakeAttacher{}), request{Command: client.Status, Config: json.RawMessage(`[]`)}), client.CodeDecode)
}

// "11: Try again later. If the plugin detects some transient condition that
// should clear up".
func TestErrorsOfTheAgent(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	for code, errs := range map[int][]error{
		client.CodeTryAgainLater:      {ErrTryAgain, store.ErrUnavailable, ipam.ErrNotReconciled},
		client.CodeExhausted:          {ipam.ErrExhausted, ipam.ErrNoPool},
		client.CodeAttached:           {ErrAttached, ipam.ErrExists},
		client.CodeInvalidConfig:      {ipam.ErrAddress, &client.Error{Code: client.CodeInvalidConfig}},
		client.CodeInvalidEnvironment: {ErrNetNS},
		client.CodeUnknownContainer:   {ErrUnknownContainer},
		client.CodeFailed:             {errors.New("create veth: no buffer space")},
	} {
		for _, err := range errs {
			f.fail = fmt.Errorf("pod x: %w", err)
			reply := call(t, socket, addRequest("1.0.0"))
			wantCode(t, reply, code)
			if reply.failure.CNIVersion != "1.0.0" {
				t.Errorf("%v: cniVersion %q", err, reply.failure.CNIVersion)
			}
		}
	}
}

// "Error codes 1-99 must not be used other than as specified here" (0.4.0); 0.3.1
// has 1 and 2, 0.4.0 also 3 and 11, 1.0.0 also 4 to 7.
func TestCodesOfEachVersion(t *testing.T) {
	f := &fakeAttacher{}
	socket := serve(t, f)
	for _, c := range []struct {
		version string
		err     error
		code    int
	}{
		{"0.3.1", ErrTryAgain, client.CodeFailed},
		{"0.3.1", ErrUnknownContainer, client.CodeFailed},
		{"0.3.1", ErrAttached, client.CodeAttached},
		{"0.4.0", ErrTryAgain, client.CodeTryAgainLater},
		{"0.4.0", ErrUnknownContainer, client.CodeUnknownContainer},
		{"0.4.0", ipam.ErrAddress, client.CodeFailed},
		{"0.4.0", ErrNetNS, client.CodeFailed},
		{"1.0.0", ErrNetNS, client.CodeInvalidEnvironment},
	} {
		f.fail = fmt.Errorf("pod x: %w", c.err)
		wantCode(t, call(t, socket, addRequest(c.version)), c.code)
	}
	wantCode(t, call(t, socket, addRequest("0.4.0", `"colour":"red"`)), client.CodeFailed)
	wantCode(t, call(t, socket, addRequest("0.3.1", `"ipMasq":true`)), client.CodeUnsupportedField)
}
