$ twill fabric get
Preference:  vxlan, host-gw  (default)
VXLAN:       identifier 1, UDP port 8472

NODE   ADDRESSES   RECEIVES
$ twill apply -f testdata/cluster.yaml
namespace/policy-demo created
node/node01 created
node/node02 created
ippool.projectcalico.org/pods created
ippool.projectcalico.org/pods6 created
ipamblock.projectcalico.org/10-244-0-0-26 created
ipamblock.projectcalico.org/10-244-1-0-26 created
workloadendpoint.projectcalico.org/nginx-1 created
workloadendpoint.projectcalico.org/nginx-2 created
workloadendpoint.projectcalico.org/access created
service/nginx created
service/elsewhere created
service/waiting created
endpointslice.discovery.k8s.io/nginx-ipv4 created
networkpolicy.networking.k8s.io/access-nginx created
networkpolicy.networking.k8s.io/everything created
networkpolicy.networking.k8s.io/deny-all created
$ twill fabric set host-gw
preference: host-gw, vxlan
$ twill fabric get
Preference:  host-gw, vxlan
VXLAN:       identifier 1, UDP port 8472

NODE     ADDRESSES                  RECEIVES
node01   172.16.10.11,fd00:16::11   host-gw,vxlan
node02   172.16.10.12               <none>
$ twill get fabric
NAME      PREFERENCE      AGE
default   host-gw,vxlan   5m
$ twill fabric set vxlan --only
preference: vxlan
$ twill fabric set host-gw
preference: host-gw, vxlan
$ twill fabric set wireguard
error: say which back end to prefer: vxlan or host-gw
[exit 2]
