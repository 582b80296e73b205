$ twill create namespace policy-demo
namespace/policy-demo created
$ twill apply -f testdata/cluster.yaml
namespace/policy-demo configured
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
$ twill describe netpol -n policy-demo
Name:           access-nginx
Namespace:      policy-demo
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
Pod selector:   app=nginx
Selected pods:  nginx-1
                nginx-2

Ingress to these pods is allowed only:
  1. on every port from
       - pods with run=access of this namespace
Egress from these pods is not restricted by this policy.

Name:           deny-all
Namespace:      policy-demo
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
Pod selector:   every pod of the namespace
Selected pods:  access
                nginx-1
                nginx-2

Ingress to these pods is not restricted by this policy.
Egress from these pods is refused, unless another policy allows it.

Name:           everything
Namespace:      policy-demo
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
Pod selector:   app in (db,nginx)
Selected pods:  nginx-1
                nginx-2

Ingress to these pods is allowed only:
  1. on 80/TCP, 8000-8080/TCP, metrics/TCP, every port/UDP from anywhere
  2. on every port from
       - addresses in 172.17.0.0/16 except 172.17.1.0/24
       - addresses in 2001:db8::/32
       - every pod of namespaces with kubernetes.io/metadata.name=shop
       - pods with role=scraper of every namespace
       - every pod of this namespace
Egress from these pods is refused, unless another policy allows it.
$ twill describe svc -n policy-demo
Name:           elsewhere
Namespace:      policy-demo
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
Selector:       <none>
Type:           ExternalName
External name:  www.example.com (resolved by DNS; nothing is programmed)

Name:            nginx
Namespace:       policy-demo
Created:         2000-01-01T00:00:00Z (5m ago)
Labels:          <none>
Annotations:     <none>
Selector:        app=nginx
Type:            NodePort
Addresses:       10.1.0.7
External:        <none>
Affinity:        a client keeps its endpoint for 10800 s
Policy inside:   Cluster: endpoints on every node
Policy outside:  Cluster: endpoints on every node

Ports:
  PORT      NAME    NODE PORT   TARGET
  80/TCP    http    30080       http
  443/TCP   https   <none>      443
Endpoints:
  ADDRESS      PORT             STATE                  NODE     POD
  10.244.0.5   80/TCP,443/TCP   ready                  node01   nginx-1
  10.244.1.5   80/TCP,443/TCP   terminating, serving   node02   <none>
  10.244.1.9   80/TCP,443/TCP   not ready              <none>   <none>

Name:            waiting
Namespace:       policy-demo
Created:         2000-01-01T00:00:00Z (5m ago)
Labels:          <none>
Annotations:     <none>
Selector:        <none>
Type:            LoadBalancer
Addresses:       <none>
External:        <pending>
Affinity:        None
Policy inside:   Cluster: endpoints on every node
Policy outside:  Cluster: endpoints on every node

Ports:
  PORT     NAME     NODE PORT   TARGET
  53/UDP   <none>   <none>      53
Endpoints:
  <none>
$ twill describe pod nginx-1 access -n policy-demo
Name:         nginx-1
Namespace:    policy-demo
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       app=nginx
Annotations:  <none>
Addresses:    10.244.0.5
              fd00:244::5
Node:         node01
Container:    0123456789abcdef0123456789abcdef
Interface:    eth0
On the node:  tw-0a1b2c3d4e5
MAC:          02:00:00:00:00:05
Ports:        http 80/TCP
              443/TCP, port 8443 of the node
Services:     nginx
Ingress:      access-nginx
              everything
Egress:       deny-all
              everything

Name:         access
Namespace:    policy-demo
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       run=access
Annotations:  <none>
Addresses:    10.244.1.6
Node:         node02
Container:    <none>
Interface:    <none>
On the node:  <none>
MAC:          <none>
Ports:        <none>
Services:     <none>
Ingress:      no policy: everything is allowed
Egress:       deny-all
$ twill describe nodes
Name:         node01
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       zone=a
Annotations:  twill.io/receives={"host-gw":{},"vxlan":{"mac":"02:74:00:00:00:01","vni":1,"port":8472}}
Addresses:    172.16.10.11,fd00:16::11
Receives:     host-gw
              vxlan (MAC 02:74:00:00:00:01, identifier 1, port 8472)
Blocks:       10.244.0.0/26

Conditions:
  TYPE                    STATUS   SINCE       REASON   MESSAGE
  TwillRoutesProgrammed   True     <unknown>   Done     all 12 routes are there
Pods:
  NAMESPACE     NAME      IP
  policy-demo   nginx-1   10.244.0.5,fd00:244::5

Name:         node02
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       <none>
Annotations:  <none>
Addresses:    172.16.10.12
Receives:     <none>
Blocks:       10.244.1.0/26

Conditions:
  <none>
Pods:
  NAMESPACE     NAME      IP
  policy-demo   access    10.244.1.6
  policy-demo   nginx-2   10.244.1.5
$ twill describe pools
Name:           pods
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
CIDR:           10.244.0.0/16
Block size:     /26
Nodes:          all()
Masquerade:     what leaves pools and nodes
New addresses:  yes
VXLAN:          CrossSubnet
In use:         3 addresses of pods, 2 of 1024 blocks

Blocks:
  BLOCK           NODE     PODS
  10.244.0.0/26   node01   1
  10.244.1.0/26   node02   2

Name:           pods6
Created:        2000-01-01T00:00:00Z (5m ago)
Labels:         <none>
Annotations:    <none>
CIDR:           fd00:244::/64
Block size:     /122
Nodes:          zone == 'a'
Masquerade:     nothing
New addresses:  no: the pool is disabled
VXLAN:          <none>
In use:         1 addresses of pods, 0 of 2^58 blocks

Blocks:
  <none>
$ twill describe ns policy-demo
Name:         policy-demo
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       kubernetes.io/metadata.name=policy-demo
              team=web
Annotations:  <none>
$ twill describe block 10-244-0-0-26
Name:         10-244-0-0-26
Created:      2000-01-01T00:00:00Z (5m ago)
Labels:       <none>
Annotations:  <none>
spec:
  affinity: host:node01
  cidr: 10.244.0.0/26
$ twill describe netpol x -n policy-demo
error: networkpolicies "x": not found in namespace "policy-demo"
[exit 1]
