$ twill create namespace policy-demo
namespace/policy-demo created
$ twill create namespace policy-demo
error: create namespace policy-demo: already exists
[exit 1]
$ twill create namespace Policy_Demo
error: metadata.name: Invalid value: "Policy_Demo": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
[exit 2]
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
$ twill apply -f testdata/cluster.yaml
namespace/policy-demo unchanged
node/node01 unchanged
node/node02 unchanged
ippool.projectcalico.org/pods unchanged
ippool.projectcalico.org/pods6 unchanged
ipamblock.projectcalico.org/10-244-0-0-26 unchanged
ipamblock.projectcalico.org/10-244-1-0-26 unchanged
workloadendpoint.projectcalico.org/nginx-1 unchanged
workloadendpoint.projectcalico.org/nginx-2 unchanged
workloadendpoint.projectcalico.org/access unchanged
service/nginx unchanged
service/elsewhere unchanged
service/waiting unchanged
endpointslice.discovery.k8s.io/nginx-ipv4 unchanged
networkpolicy.networking.k8s.io/access-nginx unchanged
networkpolicy.networking.k8s.io/everything unchanged
networkpolicy.networking.k8s.io/deny-all unchanged
$ twill get ns --show-labels
NAME          AGE   LABELS
policy-demo   5m    kubernetes.io/metadata.name=policy-demo,team=web
$ twill get pods -n policy-demo
NAME      IP                       NODE     AGE
access    10.244.1.6               node02   5m
nginx-1   10.244.0.5,fd00:244::5   node01   5m
nginx-2   10.244.1.5               node02   5m
$ twill get pods -A -o wide
NAMESPACE     NAME      IP                       NODE     CONTAINER      INTERFACE        MAC                 AGE
policy-demo   access    10.244.1.6               node02   <none>         <none>           <none>              5m
policy-demo   nginx-1   10.244.0.5,fd00:244::5   node01   0123456789ab   tw-0a1b2c3d4e5   02:00:00:00:00:05   5m
policy-demo   nginx-2   10.244.1.5               node02   <none>         <none>           <none>              5m
$ twill get pods -A -l app=nginx --no-headers
policy-demo   nginx-1   10.244.0.5,fd00:244::5   node01   5m
policy-demo   nginx-2   10.244.1.5               node02   5m
$ twill get pods
no pods in namespace "default" (-A shows all)
$ twill get svc -n policy-demo
NAME        TYPE           CLUSTER-IP   EXTERNAL-IP       PORT(S)                AGE
elsewhere   ExternalName   <none>       www.example.com   <none>                 5m
nginx       NodePort       10.1.0.7     <none>            80:30080/TCP,443/TCP   5m
waiting     LoadBalancer   <none>       <pending>         53/UDP                 5m
$ twill get services -n policy-demo -o wide
NAME        TYPE           CLUSTER-IP   EXTERNAL-IP       PORT(S)                AGE   SELECTOR
elsewhere   ExternalName   <none>       www.example.com   <none>                 5m    <none>
nginx       NodePort       10.1.0.7     <none>            80:30080/TCP,443/TCP   5m    app=nginx
waiting     LoadBalancer   <none>       <pending>         53/UDP                 5m    <none>
$ twill get eps -n policy-demo
NAME         ADDRESSTYPE   PORTS    ENDPOINTS                          AGE
nginx-ipv4   IPv4          80,443   10.244.0.5,10.244.1.5,10.244.1.9   5m
$ twill get netpol -n policy-demo
NAME           POD-SELECTOR        TYPES            AGE
access-nginx   app=nginx           Ingress          5m
deny-all       <none>              Egress           5m
everything     app in (db,nginx)   Ingress,Egress   5m
$ twill get nodes
NAME     ADDRESSES                  RECEIVES        BLOCKS          AGE
node01   172.16.10.11,fd00:16::11   host-gw,vxlan   10.244.0.0/26   5m
node02   172.16.10.12               <none>          10.244.1.0/26   5m
$ twill get pools
NAME    CIDR            BLOCKSIZE   NAT     DISABLED   SELECTOR
pods    10.244.0.0/16   26          true    false      all()
pods6   fd00:244::/64   122         false   true       zone == 'a'
$ twill get pools -o wide
NAME    CIDR            BLOCKSIZE   NAT     DISABLED   VXLAN         SELECTOR      AGE
pods    10.244.0.0/16   26          true    false      CrossSubnet   all()         5m
pods6   fd00:244::/64   122         false   true       <none>        zone == 'a'   5m
$ twill get blocks
NAME            CIDR            NODE     AGE
10-244-0-0-26   10.244.0.0/26   node01   5m
10-244-1-0-26   10.244.1.0/26   node02   5m
$ twill get fabric
no fabricconfigurations
$ twill get netpol,svc -n policy-demo -l app!=x
NAME                                           POD-SELECTOR        TYPES            AGE
networkpolicy.networking.k8s.io/access-nginx   app=nginx           Ingress          5m
networkpolicy.networking.k8s.io/deny-all       <none>              Egress           5m
networkpolicy.networking.k8s.io/everything     app in (db,nginx)   Ingress,Egress   5m

NAME                TYPE           CLUSTER-IP   EXTERNAL-IP       PORT(S)                AGE
service/elsewhere   ExternalName   <none>       www.example.com   <none>                 5m
service/nginx       NodePort       10.1.0.7     <none>            80:30080/TCP,443/TCP   5m
service/waiting     LoadBalancer   <none>       <pending>         53/UDP                 5m
$ twill get svc/nginx netpol/access-nginx -n policy-demo
NAME            TYPE       CLUSTER-IP   EXTERNAL-IP   PORT(S)                AGE
service/nginx   NodePort   10.1.0.7     <none>        80:30080/TCP,443/TCP   5m

NAME                                           POD-SELECTOR   TYPES     AGE
networkpolicy.networking.k8s.io/access-nginx   app=nginx      Ingress   5m
$ twill get netpol,svc -n policy-demo -o name
networkpolicy.networking.k8s.io/access-nginx
networkpolicy.networking.k8s.io/deny-all
networkpolicy.networking.k8s.io/everything
service/elsewhere
service/nginx
service/waiting
$ twill get networkpolicy.networking.k8s.io/access-nginx -n policy-demo
NAME           POD-SELECTOR   TYPES     AGE
access-nginx   app=nginx      Ingress   5m
$ twill get netpol access-nginx -n policy-demo -o yaml
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  creationTimestamp: "2000-01-01T00:00:00Z"
  generation: 1
  name: access-nginx
  namespace: policy-demo
  resourceVersion: "17"
  uid: UID
spec:
  ingress:
  - from:
    - podSelector:
        matchLabels:
          run: access
  podSelector:
    matchLabels:
      app: nginx
  policyTypes:
  - Ingress
$ twill get netpol access-nginx -n policy-demo -o json
{
    "kind": "NetworkPolicy",
    "apiVersion": "networking.k8s.io/v1",
    "metadata": {
        "name": "access-nginx",
        "namespace": "policy-demo",
        "uid": "UID",
        "resourceVersion": "17",
        "generation": 1,
        "creationTimestamp": "2000-01-01T00:00:00Z"
    },
    "spec": {
        "podSelector": {
            "matchLabels": {
                "app": "nginx"
            }
        },
        "ingress": [
            {
                "from": [
                    {
                        "podSelector": {
                            "matchLabels": {
                                "run": "access"
                            }
                        }
                    }
                ]
            }
        ],
        "policyTypes": [
            "Ingress"
        ]
    }
}
$ twill get blocks -o yaml
apiVersion: v1
items:
- apiVersion: projectcalico.org/v3
  kind: IPAMBlock
  metadata:
    creationTimestamp: "2000-01-01T00:00:00Z"
    generation: 1
    name: 10-244-0-0-26
    resourceVersion: "8"
    uid: UID
  spec:
    affinity: host:node01
    cidr: 10.244.0.0/26
- apiVersion: projectcalico.org/v3
  kind: IPAMBlock
  metadata:
    creationTimestamp: "2000-01-01T00:00:00Z"
    generation: 1
    name: 10-244-1-0-26
    resourceVersion: "9"
    uid: UID
  spec:
    affinity: host:node02
    cidr: 10.244.1.0/26
kind: List
$ twill get netpol nothing access-nginx -n policy-demo
NAME           POD-SELECTOR   TYPES     AGE
access-nginx   app=nginx      Ingress   5m
error: networkpolicies "nothing": not found in namespace "policy-demo"
[exit 1]
