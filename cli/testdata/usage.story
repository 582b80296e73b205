$ twill version
twill v0.1.0 (GO)
$ twill gte
error: unknown command "gte" for "twill"; did you mean get?
[exit 2]
$ twill fabric gett
error: unknown command "gett" for "twill fabric"; did you mean get or set?
[exit 2]
$ twill get
error: say of what kind: namespaces, nodes, fabricconfigurations, ippools, ipamblocks, pods, services, endpointslices, leases, networkpolicies
[exit 2]
$ twill get deployments
error: unknown kind "deployments"; there are namespaces, nodes, fabricconfigurations, ippools, ipamblocks, pods, services, endpointslices, leases, networkpolicies
[exit 2]
$ twill get pods --outptu yaml
error: unknown flag: --outptu
[exit 2]
$ twill get pods -o xml
error: --output "xml": there are table, wide, json, yaml, name
[exit 2]
$ twill get pods -l 'a=b=c'
error: --selector "a=b=c": found '=', expected: ',' or 'end of string'
[exit 2]
$ twill get pods web -l app=web
error: a name and --selector exclude each other
[exit 2]
$ twill get pods web -A
error: a name and --all-namespaces exclude each other: give the namespace with -n
[exit 2]
$ twill get pods svc/web
error: "svc/web": either every argument is KIND/NAME or none
[exit 2]
$ twill get svc/web pods
error: "pods": either every argument is KIND/NAME or none
[exit 2]
$ twill get pods,svc -w
error: --watch follows one kind
[exit 2]
$ twill apply
error: say what to apply: -f FILE, -f DIRECTORY or -f -
[exit 2]
$ twill apply -f testdata/none.yaml
error: stat testdata/none.yaml: no such file or directory
[exit 1]
$ twill apply -f testdata
error: testdata/bad.yaml: document 2 (NetworkPolicy default/web): spec.podSelektor: unknown field
error: testdata/bad.yaml: document 2 (NetworkPolicy default/web): spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"
error: testdata/bad.yaml: document 3 (Deployment web): kind: Twill does not keep apps/v1 Deployment; it keeps v1 Namespace, v1 Node, twill.io/v1 FabricConfiguration, projectcalico.org/v3 IPPool, projectcalico.org/v3 IPAMBlock, projectcalico.org/v3 WorkloadEndpoint, v1 Service, discovery.k8s.io/v1 EndpointSlice, coordination.k8s.io/v1 Lease, networking.k8s.io/v1 NetworkPolicy
error: testdata/refused.yaml: Service policy-demo/nginx stands in testdata/cluster.yaml, too
error: testdata/refused.yaml: IPPool pods stands in testdata/cluster.yaml, too
error: testdata/web.yaml: Service policy-demo/nginx stands in testdata/cluster.yaml, too
[exit 1]
$ twill apply x
error: unknown command "x" for "twill apply"
[exit 2]
$ twill label node node01
error: say which labels: KEY=VALUE to set, KEY- to remove
[exit 2]
$ twill label node node01 'a b=c'
error: "a b=c": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
[exit 2]
$ twill label node node01 a=b a-
error: label a can't be both set and removed
[exit 2]
$ twill label node a=b
error: say which: names, -l SELECTOR or --all
[exit 2]
$ twill delete pods
error: say which: names, -l SELECTOR or --all
[exit 2]
$ twill delete -f testdata/web.yaml pods
error: -f excludes arguments, --selector, --all and --all-namespaces
[exit 2]
$ twill create
Create an object without a file

Usage:
  twill create [flags]
  twill create [command]

Available Commands:
  namespace   Create a namespace

Flags:
  -h, --help   help for create

Global Flags:
      --api-server string           URL of the API server, in place of the kubeconfig's or, in a pod, of those that are found (TWILL_API_SERVER)
      --context string              context of the kubeconfig, in place of its current one (TWILL_CONTEXT)
      --etcd-cacert string          file with the authority that signed etcd's certificate (TWILL_ETCD_CACERT)
      --etcd-cert string            file with the client's certificate (TWILL_ETCD_CERT)
      --etcd-endpoints string       addresses of etcd, separated by commas: http://, https:// or unix:// (TWILL_ETCD_ENDPOINTS)
      --etcd-key string             file with the client's key (TWILL_ETCD_KEY)
      --etcd-password-file string   file whose first line is the user's password (TWILL_ETCD_PASSWORD_FILE)
      --etcd-username string        etcd user (TWILL_ETCD_USERNAME)
      --kubeconfig string           kubeconfig of the cluster whose API is the store; in a pod its service account (TWILL_KUBECONFIG)
      --lab string                  name of the lab on this machine whose store to use (TWILL_LAB)

Use "twill create [command] --help" for more information about a command.
$ twill config explain
SETTING              VALUE                   FROM      WHAT IT IS
etcd-endpoints       http://127.0.0.1:2379   default   addresses of etcd, separated by commas: http://, https:// or unix://
lab                  <none>                  default   name of the lab on this machine whose store to use
kubeconfig           <none>                  default   kubeconfig of the cluster whose API is the store; in a pod its service account
context              <none>                  default   context of the kubeconfig, in place of its current one
api-server           <none>                  default   URL of the API server, in place of the kubeconfig's or, in a pod, of those that are found
etcd-cacert          <none>                  default   file with the authority that signed etcd's certificate
etcd-cert            <none>                  default   file with the client's certificate
etcd-key             <none>                  default   file with the client's key
etcd-username        <none>                  default   etcd user
etcd-password-file   <none>                  default   file whose first line is the user's password
$ TWILL_ETCD_ENDPOINTS=https://etcd-1:2379 twill config explain --etcd-cacert ca.pem
SETTING              VALUE                 FROM                               WHAT IT IS
etcd-endpoints       https://etcd-1:2379   environment TWILL_ETCD_ENDPOINTS   addresses of etcd, separated by commas: http://, https:// or unix://
lab                  <none>                default                            name of the lab on this machine whose store to use
kubeconfig           <none>                default                            kubeconfig of the cluster whose API is the store; in a pod its service account
context              <none>                default                            context of the kubeconfig, in place of its current one
api-server           <none>                default                            URL of the API server, in place of the kubeconfig's or, in a pod, of those that are found
etcd-cacert          ca.pem                flag --etcd-cacert                 file with the authority that signed etcd's certificate
etcd-cert            <none>                default                            file with the client's certificate
etcd-key             <none>                default                            file with the client's key
etcd-username        <none>                default                            etcd user
etcd-password-file   <none>                default                            file whose first line is the user's password
$ TWILL_LAB=demo twill config explain
error: there is no lab "demo" on this machine (none is running)
[exit 1]
$ twill get pods --lab demo --etcd-endpoints http://127.0.0.1:2379
error: --etcd-endpoints and --lab exclude each other: there is one store (flag --etcd-endpoints, flag --lab)
[exit 2]
$ twill preflight -o xml
error: --output "xml": there are table, wide, json, yaml
[exit 2]
$ twill preflight --pod-cidr 10.244.0.0
error: --pod-cidr: netip.ParsePrefix("10.244.0.0"): no '/'
[exit 2]
$ twill preflight now
error: unknown command "now" for "twill preflight"
[exit 2]
$ HOME=/nowhere twill install
error: which cluster? There is no /nowhere/.kube/config: say --kubeconfig
[exit 2]
$ HOME=/nowhere twill uninstall --yes
error: which cluster? There is no /nowhere/.kube/config: say --kubeconfig
[exit 2]
$ twill install -o yaml
error: --output "yaml": use yaml or json, with --dry-run
[exit 2]
$ twill install --dry-run -o xml
error: --output "xml": use yaml or json, with --dry-run
[exit 2]
$ twill install --setting LOG_LEVEL=debug
error: --setting LOG_LEVEL: settings begin with TWILL_, see twill config explain
[exit 2]
$ twill install --pod-cidr 10.244.0.1/16
error: --pod-cidr 10.244.0.1/16 has bits set beyond its length: write 10.244.0.0/16
[exit 2]
$ KUBECONFIG=testdata/nowhere twill install --yes
error: kubernetes: stat testdata/nowhere: no such file or directory
[exit 1]
