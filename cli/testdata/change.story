$ twill apply -f testdata/dir -n shop
namespace/shop created
service/web created
networkpolicy.networking.k8s.io/web created
$ twill apply -f testdata/dir -n shop --dry-run
namespace/shop unchanged (dry run)
service/web unchanged (dry run)
networkpolicy.networking.k8s.io/web unchanged (dry run)
$ twill apply -f testdata/dir
error: service/web: namespace "default" does not exist: run "twill create namespace default" first
[exit 1]
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
$ twill apply -f testdata/web.yaml
service/nginx configured
$ twill get svc nginx -n policy-demo -o yaml
apiVersion: v1
kind: Service
metadata:
  creationTimestamp: "2000-01-01T00:00:00Z"
  generation: 2
  labels:
    tier: front
  name: nginx
  namespace: policy-demo
  resourceVersion: "22"
  uid: UID
spec:
  clusterIP: 10.1.0.7
  clusterIPs:
  - 10.1.0.7
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ports:
  - name: http
    nodePort: 30080
    port: 80
    protocol: TCP
    targetPort: 80
  - name: alt
    port: 8080
    protocol: TCP
    targetPort: 8080
  selector:
    app: nginx
  sessionAffinity: None
  type: NodePort
status:
  loadBalancer: {}
$ twill apply -f testdata/web.yaml
service/nginx unchanged
$ twill apply -f testdata/refused.yaml
error: ippool.projectcalico.org/pods: spec.cidr: Invalid value: "10.245.0.0/16": field is immutable
error: service/nginx: spec.clusterIP: Invalid value: "10.1.0.8": field is immutable
error: networkpolicy.networking.k8s.io/web: namespace "nowhere" does not exist: run "twill create namespace nowhere" first
error: ippool.projectcalico.org/more: spec.cidr: Invalid value: "fd00:244::/80": overlaps IPPool pods6 (fd00:244::/64)
error: ippool.projectcalico.org/over-nodes: spec.cidr: Invalid value: "172.16.10.0/24": overlaps the address 172.16.10.11 of node node01: choose a range that is not in use
error: ippool.projectcalico.org/over-nodes: spec.cidr: Invalid value: "172.16.10.0/24": overlaps the address 172.16.10.12 of node node02: choose a range that is not in use
error: ippool.projectcalico.org/over-services: spec.cidr: Invalid value: "10.1.0.0/24": overlaps the cluster IP 10.1.0.7 of Service policy-demo/nginx: choose a range that is not in use
error: ippool.projectcalico.org/over-services: spec.cidr: Invalid value: "10.1.0.0/24": overlaps the cluster IP 10.1.0.8 of Service policy-demo/nginx: choose a range that is not in use
[exit 1]
$ twill apply -f testdata/bad.yaml
error: testdata/bad.yaml: document 2 (NetworkPolicy default/web): spec.podSelektor: unknown field
error: testdata/bad.yaml: document 2 (NetworkPolicy default/web): spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"
error: testdata/bad.yaml: document 3 (Deployment web): kind: Twill does not keep apps/v1 Deployment; it keeps v1 Namespace, v1 Node, twill.io/v1 FabricConfiguration, projectcalico.org/v3 IPPool, projectcalico.org/v3 IPAMBlock, projectcalico.org/v3 WorkloadEndpoint, v1 Service, discovery.k8s.io/v1 EndpointSlice, coordination.k8s.io/v1 Lease, networking.k8s.io/v1 NetworkPolicy
[exit 1]
$ twill get ns fine
error: namespaces "fine": not found
[exit 1]
$ twill apply -f testdata/cluster.yaml -n shop
error: testdata/cluster.yaml: WorkloadEndpoint policy-demo/nginx-1 is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: WorkloadEndpoint policy-demo/nginx-2 is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: WorkloadEndpoint policy-demo/access is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: Service policy-demo/nginx is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: Service policy-demo/elsewhere is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: Service policy-demo/waiting is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: EndpointSlice policy-demo/nginx-ipv4 is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: NetworkPolicy policy-demo/access-nginx is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: NetworkPolicy policy-demo/everything is not in namespace "shop", which --namespace asks for
error: testdata/cluster.yaml: NetworkPolicy policy-demo/deny-all is not in namespace "shop", which --namespace asks for
[exit 1]
$ twill label node node01 zone=b
error: label node/node01: zone is "a" already: use --overwrite to change it
[exit 1]
$ twill label node node01 zone=b rack=7 --overwrite
node/node01 labelled
$ twill label nodes --all zone-
node/node01 labelled
node/node02 not changed
$ twill label nodes -l rack=7 rack=7
node/node01 not changed
$ twill get nodes --show-labels
NAME     ADDRESSES                  RECEIVES        BLOCKS          AGE   LABELS
node01   172.16.10.11,fd00:16::11   host-gw,vxlan   10.244.0.0/26   5m    rack=7
node02   172.16.10.12               <none>          10.244.1.0/26   5m    <none>
$ twill delete netpol web -n shop
networkpolicy.networking.k8s.io/web deleted
$ twill delete netpol web -n shop
error: delete networkpolicy.networking.k8s.io/web: not found
[exit 1]
$ twill delete netpol web -n shop --ignore-not-found
$ twill delete netpol -n policy-demo -l a
$ twill delete -f testdata/dir -n shop
service/web deleted
namespace/shop deleted
error: delete networkpolicy.networking.k8s.io/web: not found
[exit 1]
$ twill delete ns policy-demo
error: delete namespace/policy-demo: 3 pods run in it: stop them first
[exit 1]
$ twill delete pods --all -n policy-demo
workloadendpoint.projectcalico.org/access deleted
workloadendpoint.projectcalico.org/nginx-1 deleted
workloadendpoint.projectcalico.org/nginx-2 deleted
$ twill delete ns/policy-demo
networkpolicy.networking.k8s.io/access-nginx deleted
networkpolicy.networking.k8s.io/deny-all deleted
networkpolicy.networking.k8s.io/everything deleted
endpointslice.discovery.k8s.io/nginx-ipv4 deleted
service/elsewhere deleted
service/nginx deleted
service/waiting deleted
namespace/policy-demo deleted
$ twill get netpol,svc,eps,ns -A
nothing
