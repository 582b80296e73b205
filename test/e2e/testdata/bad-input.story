twill frob
error: unknown command "frob" for "twill"
[exit 2]

twill get
error: say of what kind: namespaces, nodes, fabricconfigurations, ippools, ipamblocks, pods, services, endpointslices, leases, networkpolicies
[exit 2]

twill get frobs
error: unknown kind "frobs"; there are namespaces, nodes, fabricconfigurations, ippools, ipamblocks, pods, services, endpointslices, leases, networkpolicies
[exit 2]

twill get pods -o xml
error: --output "xml": there are table, wide, json, yaml, name
[exit 2]

twill apply
error: say what to apply: -f FILE, -f DIRECTORY or -f -
[exit 2]

twill apply -f /none.yaml
error: stat /none.yaml: no such file or directory
[exit 1]

twill delete pod
error: say which: names, -l SELECTOR or --all
[exit 2]

twill delete pod nobody
error: delete workloadendpoint.projectcalico.org/nobody: not found
[exit 1]

twill trace
error: 0 arguments are given, 2 are needed: twill trace FROM TO:PORT[/PROTOCOL] [flags]
[exit 2]

twill trace a
error: 1 arguments are given, 2 are needed: twill trace FROM TO:PORT[/PROTOCOL] [flags]
[exit 2]

twill trace a b:http
error: pod default/b has no named ports: give the number instead of "http"
[exit 1]

twill trace a b:99999
error: "99999" is neither a port number from 1 to 65535 nor the name of a port
[exit 2]

twill trace nobody b:80
error: there is no pod default/nobody
[exit 1]

twill describe node nobody
error: nodes "nobody": not found
[exit 1]

twill label pod a =
error: "=": name part must be non-empty; name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
[exit 2]

twill status --frob
error: unknown flag: --frob
[exit 2]

twill connect
error: unknown command "connect" for "twill"
[exit 2]

twill agent --node-ip x
error: --node-ip: ParseAddr("x"): unable to parse IP
[exit 2]

twill agent --node-name UPPER
error: node name "UPPER": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
[exit 2]

twill controller --service-cidr x
error: --service-cidr: netip.ParsePrefix("x"): no '/'
[exit 2]

twill-lab frob
twill lab: unknown command "frob" for "twill lab"
[exit 2]

twill-lab up --nodes 0
twill lab: 0 nodes: a lab has 1 to 150
[exit 2]

twill-lab up --nodes 1000
twill lab: 1000 nodes: a lab has 1 to 150
[exit 2]

twill-lab up --name UPPER
twill lab: lab name "UPPER": use at most 32 lower-case letters, digits and inner dashes
[exit 2]

twill-lab up --pool 10.0.0.1/8
twill lab: pool 10.0.0.1/8 has address bits beyond its prefix: write 10.0.0.0/8
[exit 2]

twill-lab run --name LAB a b
twill lab: one name and, after --, a command are needed; usage: twill lab run NAME [-- COMMAND...] [flags]
[exit 2]

twill-lab run --name LAB x --port 0
twill lab: port "0": write a number from 1 to 65535, or NAME=NUMBER
[exit 2]

twill-lab run --name LAB x --node nowhere
twill lab: there is no node "nowhere": they are master, node01, node02
[exit 1]

twill-lab run --name LAB -n Q x
twill lab: namespace "Q": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
[exit 2]

twill-lab run --name LAB a
twill lab: there is a pod default/a already: remove it with "twill lab rm -n default a"
[exit 1]

twill-lab rm --name LAB nobody
twill lab: there is no pod nobody in namespace default
[exit 1]

twill-lab exec --name LAB nobody -- true
twill lab: there is no pod nobody in namespace default
[exit 1]

twill-lab agent --name LAB node01 frob
twill lab: action "frob": use stop, start or kill
[exit 2]

twill-lab agent --name LAB node77 kill
twill lab: there is no node "node77": they are master, node01, node02
[exit 1]

twill plan
error: 0 arguments are given, 1 are needed: twill plan NODE [flags]
[exit 2]

twill fabric set x y
error: say which back end to prefer: vxlan or host-gw
[exit 2]

twill config frob
error: unknown command "frob" for "twill config"
[exit 2]

manifest [
error: -: document 1: not valid YAML: line 1: did not find expected node content
[exit 1]

manifest just text
error: -: document 1: not an object: a manifest has fields such as apiVersion, kind and metadata
[exit 1]

manifest kind: Pod
error: -: document 1 (Pod): apiVersion: Required value
[exit 1]

manifest apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 0}]}
error: -: document 1 (Service default/x): spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
[exit 1]

manifest apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: X}\nspec: {podSelector: {}}
error: -: document 1 (NetworkPolicy default/X): metadata.name: Invalid value: "X": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
[exit 1]

manifest apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}\nspec: {podSelector: {}, ingres: []}
error: -: document 1 (NetworkPolicy default/x): spec.ingres: unknown field
[exit 1]

manifest apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.0.0.0/99}
error: -: document 1 (IPPool x): spec.cidr: Invalid value: "10.0.0.0/99": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
[exit 1]

manifest apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.244.0.0/17}
error: ippool.projectcalico.org/x: spec.cidr: Invalid value: "10.244.0.0/17": overlaps IPPool default-ipv4 (10.244.0.0/16)
[exit 1]

cni COMMAND= -- {}
{ "code": 4, "msg": "CNI_COMMAND is not set", "details": "twill-cni is a CNI plugin: a container runtime starts it" } [exit 1]

cni COMMAND=FROB -- {}
{ "code": 4, "msg": "CNI_COMMAND is invalid: \"FROB\"", "details": "it is ADD, DEL, CHECK, GC, STATUS or VERSION" } [exit 1]

cni COMMAND=ADD -- 
{ "code": 6, "msg": "can't decode the network configuration", "details": "it is not a JSON object" } [exit 1]

cni COMMAND=ADD -- []
{ "code": 6, "msg": "can't decode the network configuration", "details": "it is not a JSON object" } [exit 1]

cni COMMAND=ADD -- {+"cniVersion":"0.2.0"}
{ "code": 1, "msg": "cniVersion \"0.2.0\" is not supported", "details": "supported are 0.3.1, 0.4.0, 1.0.0, 1.1.0" } [exit 1]

cni COMMAND=ADD -- {"cniVersion":"1.1.0","socket":"/none.sock"}
{ "cniVersion": "1.1.0", "code": 11, "msg": "the twill agent on this node does not answer at /none.sock: connect: no such file or directory: see whether it runs (twill status)" } [exit 1]

cni COMMAND=ADD -- {+"frob":1}
{ "cniVersion": "1.1.0", "code": 7, "msg": "the network configuration has an unknown key \"frob\"", "details": "value 1" } [exit 1]

cni COMMAND=ADD -- {+"ipam":{"type":"host-local"}}
{ "cniVersion": "1.1.0", "code": 2, "msg": "unsupported field \"ipam\": {\"type\":\"host-local\"}", "details": "addresses come from Twill's IPPools: remove the section" } [exit 1]

cni COMMAND=ADD -- {+"mtu":"large"}
{ "cniVersion": "1.1.0", "code": 7, "msg": "the network configuration has an unknown key \"mtu\"", "details": "value \"large\"" } [exit 1]

cni COMMAND=ADD -- {+"runtimeConfig":{"mac":"xx"}}
{ "cniVersion": "1.1.0", "code": 7, "msg": "key \"runtimeConfig.mac\" of the network configuration is invalid", "details": "value \"xx\": it is six bytes, such as 02:00:00:00:00:01, of one host" } [exit 1]

cni COMMAND=ADD -- {+"runtimeConfig":{"ips":["10.0.0.300"]}}
{ "cniVersion": "1.1.0", "code": 7, "msg": "key \"runtimeConfig.ips\" of the network configuration is invalid", "details": "value [\"10.0.0.300\"]: one address of a family, such as 10.244.1.7 or 10.244.1.7/16" } [exit 1]

cni COMMAND=ADD -- {+"runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}}
{ "cniVersion": "1.1.0", "code": 7, "msg": "key \"runtimeConfig.portMappings\" of the network configuration is invalid", "details": "value [{\"hostPort\":70000,\"containerPort\":1}]: a port is between 1 and 65535" } [exit 1]

cni COMMAND=ADD -- {+"args":{"cni":{"labels":[{"key":"a b","value":"c"}]}}}
{ "cniVersion": "1.1.0", "code": 7, "msg": "args.cni.labels: \"a b\"=\"c\" is not a label", "details": "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName', or 'my.name', or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')" } [exit 1]

cni COMMAND=ADD -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_NETNS is invalid: /run/netns/none: no such file or directory" } [exit 1]

cni COMMAND=ADD NETNS= -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_NETNS is invalid: \"\"", "details": "it is the path of the pod's network namespace" } [exit 1]

cni COMMAND=ADD NETNS=/proc/1/status -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_NETNS is invalid: /proc/1/status: it is not a namespace" } [exit 1]

cni COMMAND=ADD CONTAINERID=../x -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_CONTAINERID is invalid: \"../x\"", "details": "it begins with a letter or digit and goes on with these, _ . -" } [exit 1]

cni COMMAND=ADD IFNAME=a/b -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_IFNAME is invalid: \"a/b\"", "details": "a device's name has 1 to 15 characters, no space, / or :" } [exit 1]

cni COMMAND=ADD IFNAME=sixteencharacter -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_IFNAME is invalid: \"sixteencharacter\"", "details": "a device's name has 1 to 15 characters, no space, / or :" } [exit 1]

cni COMMAND=ADD ARGS=frob -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_ARGS is invalid: \"frob\"", "details": "\"frob\" is not a pair KEY=value" } [exit 1]

cni COMMAND=ADD ARGS=FROB=1 -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_ARGS is invalid: \"FROB=1\"", "details": "unknown keys FROB: add IgnoreUnknown=1 if they are for others" } [exit 1]

cni COMMAND=ADD ARGS=K8S_POD_NAME=A_B -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_ARGS is invalid: \"K8S_POD_NAME=A_B\"", "details": "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')" } [exit 1]

cni COMMAND=ADD ARGS=IP=x -- {}
{ "cniVersion": "1.1.0", "code": 4, "msg": "CNI_ARGS is invalid: \"IP=x\"", "details": "it is not an address" } [exit 1]

cni COMMAND=CHECK -- {}
{ "cniVersion": "1.1.0", "code": 7, "msg": "CHECK needs prevResult", "details": "the runtime has to pass the result of ADD" } [exit 1]

cni COMMAND=CHECK -- {+"prevResult":{"interfaces":7}}
{ "cniVersion": "1.1.0", "code": 6, "msg": "can't decode prevResult", "details": "json: cannot unmarshal number into Go struct field result.interfaces of type []json.RawMessage" } [exit 1]

cni COMMAND=GC -- {}
{ "cniVersion": "1.1.0", "code": 7, "msg": "GC needs the key cni.dev/valid-attachments" } [exit 1]

cni COMMAND=GC -- {+"cni.dev/valid-attachments":"all"}
{ "cniVersion": "1.1.0", "code": 7, "msg": "key \"cni.dev/valid-attachments\" of the network configuration is invalid", "details": "json: cannot unmarshal string into Go value of type []cni.ID: value \"all\"" } [exit 1]

socket ""
{ "code": 6, "msg": "can't decode the request", "details": "EOF" } [exit 1]

socket "GET / HTTP/1.1\r\n\r\n"
{ "code": 6, "msg": "can't decode the request", "details": "it has 1195725856 bytes, more than 1048576: is twill-cni of another version than the agent?" } [exit 1]

socket "\x00\x00\x00\x00"
{ "code": 6, "msg": "can't decode the request", "details": "it ends among the variables" } [exit 1]

socket "\x00\x00\x00\x0fCNI_COMMAND=DEL"
{ "code": 6, "msg": "can't decode the request", "details": "it ends among the variables" } [exit 1]

socket "\xff\xff\xff\xff"
{ "code": 6, "msg": "can't decode the request", "details": "it has 4294967295 bytes, more than 1048576: is twill-cni of another version than the agent?" } [exit 1]

socket "\x00\x00\x00\x13CNI_COMMAND=ADD\x00\x00{}"
{ "code": 1, "msg": "cniVersion \"\" is not supported", "details": "supported are 0.3.1, 0.4.0, 1.0.0, 1.1.0" } [exit 1]

control "GET / HTTP/1.1\r\n\r\n"
hung up

control "\x00\x01\x02\x03"
hung up

control "\xff\xff\xff\xff\xff\xff"
hung up

store /twill/v1/core/services/default/bad "garbage"
error: Service default/bad is in the store and can't be read: what is stored is no Service
[exit 1]

store /twill/v1/core/services/default/bad "[]"
error: Service default/bad is in the store and can't be read: what is stored is no Service
[exit 1]

store /twill/v1/core/services/default/bad "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"spec\":7}"
error: Service default/bad is in the store and can't be read: what is stored is no Service
[exit 1]

store /twill/v1/core/services/a/b/c/d "{}"
error: Service a/b/c/d is in the store and can't be read: what is stored is no Service
[exit 1]

store /twill/v1/networking.k8s.io/networkpolicies/default/bad "\x00\xff"
error: NetworkPolicy default/bad is in the store and can't be read: what is stored is no NetworkPolicy
[exit 1]

store /twill/v1/networking.k8s.io/networkpolicies/default/bad "{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{\"namespace\":\"default\",\"name\":\"bad\"},\"spec\":{\"podSelector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Frob\"}]}}}"
[exit 0]

store /twill/v1/projectcalico.org/ippools/bad "{\"spec\":{\"cidr\":\"x\"}}"
error: IPPool bad is in the store and can't be read: what is stored is no IPPool
[exit 1]

store /twill/v1/projectcalico.org/workloadendpoints/default/bad "{\"spec\":{\"ipNetworks\":[\"x\"]}}"
error: WorkloadEndpoint default/bad is in the store and can't be read: what is stored is no WorkloadEndpoint
[exit 1]

store /twill/v1/core/nodes/bad "null"
error: Node bad is in the store and can't be read: what is stored is no Node
[exit 1]

store /twill/v1/core/namespaces/bad ""
error: Namespace bad is in the store and can't be read: what is stored is no Namespace
[exit 1]

journal empty
the damaged journal is kept

journal cut off
the damaged journal is kept

journal one bit is flipped
the damaged journal is kept

journal garbage
the damaged journal is kept
