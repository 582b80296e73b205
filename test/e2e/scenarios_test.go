package e2e

// scenarios are the examples of the documentation, and then what it says in words.
var scenarios = []scenario{
	{
		"default deny all ingress",
		denyIngress,
		`node/node01 -> db:6379 db:6379/udp
		 db frontend -> outside:5978 outside:5978/udp node/master:5978 elsewhere/far:32000
		 frontend -> myproject/client:80`,
		`frontend neighbour myproject/client elsewhere/insider node/master node/node02 -> db:6379 db:6379/udp db:8080
		 db -> frontend:80 neighbour:80
		 node/node01 -> frontend:80
		 outside -> node/node01:local node/node01:anywhere node/node02:anywhere`,
	},
	{
		"allow all ingress",
		denyIngress + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-all-ingress}
spec:
  podSelector: {}
  ingress:
  - {}
  policyTypes: [Ingress]
`,
		all + ` -> db:6379 db:6379/udp db:8080
		 outside -> node/node01:local node/node02:anywhere
		 db -> outside:5978`,
		"",
	},
	{
		"default deny all egress",
		denyEgress,
		`myproject/client elsewhere/insider node/master node/node01 -> db:6379 db:6379/udp
		 outside -> node/node01:local node/node02:anywhere`,
		`db frontend -> outside:5978 outside:5978/udp node/node01:5978 node/node02:5978/udp elsewhere/far:32000
		 frontend neighbour -> db:6379 db:6379/udp`,
	},
	{
		"allow all egress",
		denyEgress + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-all-egress}
spec:
  podSelector: {}
  egress:
  - {}
  policyTypes: [Egress]
`,
		`db frontend -> outside:5978 outside:5978/udp node/node01:5978 node/master:5978/udp elsewhere/far:32000
		 frontend neighbour myproject/client -> db:6379 db:6379/udp`,
		"",
	},
	{
		"default deny all",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny-all}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
`,
		`node/node01 -> db:6379 db:6379/udp
		 elsewhere/insider -> myproject/client:80`,
		`frontend neighbour elsewhere/far node/master -> db:6379 db:6379/udp
		 db neighbour -> outside:5978 outside:5978/udp node/node01:5978 elsewhere/far:32000`,
	},
	{
		// The addresses of the documentation, 172.17.0.0/16 except 172.17.1.0/24
		// and 10.0.0.0/24, are the pods' pool except the block of node02, and the
		// host outside.
		"ipBlock, namespaceSelector and podSelector",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: test-network-policy, namespace: default}
spec:
  podSelector:
    matchLabels: {role: db}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock:
        cidr: ${pods@4}
        except: ["${elsewhere/far block@4}"]
    - ipBlock:
        cidr: ${pods@6}
        except: ["${elsewhere/far block@6}"]
    - namespaceSelector:
        matchLabels: {project: myproject}
    - podSelector:
        matchLabels: {role: frontend}
    ports:
    - {protocol: TCP, port: 6379}
  egress:
  - to:
    - ipBlock: {cidr: "${outside@4}/32"}
    - ipBlock: {cidr: "${outside@6}/128"}
    ports:
    - {protocol: TCP, port: 5978}
`,
		`frontend neighbour myproject/client elsewhere/frontend elsewhere/insider node/node01 -> db:6379
		 node/node01 -> db:8080 db:6379/udp
		 db -> outside:5978`,
		`elsewhere/far node/master node/node02 -> db:6379
		 frontend neighbour myproject/client -> db:8080 db:6379/udp
		 outside -> node/node01:local
		 db -> outside:5979 outside:5978/udp node/master:5978 node/node01:5978 elsewhere/far:32000`,
	},
	{
		"ipBlock and clients from outside, seen as the nodes do",
		toDB(`  - from:
    - ipBlock: {cidr: 172.16.10.0/24, except: ["${node/node02@4}/32", "${node/master@4}/32"]}
    - ipBlock: {cidr: "${node/master@6}/128"}`),
		`outside -> node/node01:local@4 node/node01:anywhere@4 node/master:anywhere@6
		 node/master -> db:6379@6`,
		// Through node02 the client is seen as node02.
		`outside -> node/node02:anywhere@4 node/node01:local@6
		 node/node02 -> db:6379
		 node/master -> db:6379@4`,
	},
	{
		"namespaceSelector and podSelector in one peer: both",
		toDB(`  - from:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: elsewhere}
      podSelector:
        matchLabels: {role: frontend}`),
		"elsewhere/frontend node/node01 -> db:6379 db:6379/udp",
		"frontend myproject/client elsewhere/far elsewhere/insider -> db:6379 db:6379/udp",
	},
	{
		"namespaceSelector and podSelector in two peers: either",
		toDB(`  - from:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: elsewhere}
    - podSelector:
        matchLabels: {role: frontend}`),
		"elsewhere/frontend elsewhere/far elsewhere/insider frontend -> db:6379 db:6379/udp",
		"neighbour myproject/client node/node02 -> db:6379 db:6379/udp",
	},
	{
		"namespaces by name",
		denyEgress + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: egress-namespaces}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector:
        matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: In, values: [myproject, elsewhere]}
`,
		"db -> myproject/client:80 elsewhere/far:80 elsewhere/insider:80/udp",
		`db -> frontend:80 neighbour:80 outside:5978 node/node01:5978
		 frontend -> myproject/client:80`,
	},
	{
		"a range of ports",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: multi-port-egress, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: "${elsewhere/far block@4}"}
    - ipBlock: {cidr: "${elsewhere/far block@6}"}
    ports:
    - {protocol: TCP, port: 32000, endPort: 32768}
`,
		"db -> elsewhere/far:32000 elsewhere/far:32500 elsewhere/far:32768",
		`db -> elsewhere/far:31999 elsewhere/far:32769 elsewhere/far:32500/udp elsewhere/far:80
		 db -> neighbour:80 outside:5978`,
	},
	{
		"named ports",
		// http is port 8080 of db and port 80 of others; TCP is meant where no
		// protocol is given.
		denyIngress + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: named}
spec:
  podSelector: {}
  ingress:
  - ports: [{port: http}, {port: redis, protocol: UDP}]
`,
		`myproject/client neighbour -> db:8080 db:6379/udp frontend:80
		 elsewhere/insider -> neighbour:80`,
		`myproject/client neighbour -> db:6379 db:8080/udp db:5978 frontend:80/udp`,
	},
	{
		"named ports in egress are the other pod's",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: named}
spec:
  podSelector: {matchLabels: {tier: back}}
  policyTypes: [Egress]
  egress:
  - ports: [{port: http}]
`,
		"neighbour -> db:8080 frontend:80",
		// The others have no port of that name.
		"neighbour -> db:6379 db:8080/udp elsewhere/far:80 outside:80 node/node01:80",
	},
	{
		"SCTP is not TCP",
		toDB("  - ports: [{port: 6379, protocol: SCTP}]"),
		"node/node01 -> db:6379",
		"frontend neighbour -> db:6379 db:6379/udp",
	},
	{
		"UDP alone",
		toDB("  - ports: [{port: 6379, protocol: UDP}, {port: 5978, protocol: UDP}]"),
		"frontend neighbour -> db:6379/udp db:5978/udp",
		"frontend neighbour -> db:6379 db:5978 db:8080/udp",
	},
	{
		"without policyTypes a policy without rules is about ingress",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: types}
spec:
  podSelector: {matchLabels: {role: db}}
`,
		"db -> outside:5978 neighbour:80",
		"frontend neighbour -> db:6379",
	},
	{
		"without policyTypes a policy with egress rules is about both",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: types}
spec:
  podSelector: {matchLabels: {role: db}}
  egress:
  - to: [{podSelector: {matchLabels: {tier: back}}}]
`,
		"db -> neighbour:80 neighbour:80/udp",
		`frontend neighbour -> db:6379
		 db -> outside:5978 frontend:80`,
	},
	{
		"a type that is not named has no rules",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: types}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {no: body}}}]
`,
		"frontend neighbour -> db:6379 db:6379/udp",
		"db -> outside:5978 neighbour:80",
	},
	{
		"an empty podSelector is everybody of the namespace",
		toDB("  - from: [{podSelector: {}}]"),
		"frontend neighbour -> db:6379 db:6379/udp",
		"myproject/client elsewhere/frontend node/master -> db:6379 db:6379/udp",
	},
	{
		"an empty namespaceSelector is every pod, and no more",
		toDB("  - from: [{namespaceSelector: {}}]"),
		"frontend neighbour myproject/client elsewhere/insider elsewhere/far -> db:6379 db:6379/udp",
		`node/master node/node02 -> db:6379
		 outside -> node/node01:local node/node02:anywhere`,
	},
	{
		"empty lists mean everybody and every port",
		toDB("  - {from: [], ports: []}"),
		all + " -> db:6379 db:6379/udp db:8080",
		"",
	},
	{
		"no rules mean nobody",
		toDB("    []"),
		"node/node01 -> db:6379",
		"frontend neighbour -> db:6379 db:6379/udp",
	},
	{
		"operators of selectors",
		`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: operators}
spec:
  podSelector:
    matchExpressions:
    - {key: role, operator: Exists}
    - {key: role, operator: NotIn, values: [frontend]}
  ingress:
  - from:
    - namespaceSelector:
        matchExpressions: [{key: project, operator: DoesNotExist}, {key: kubernetes.io/metadata.name, operator: NotIn, values: [default]}]
      podSelector:
        matchExpressions: [{key: role, operator: DoesNotExist}]
`,
		`elsewhere/insider elsewhere/far -> db:6379
		 neighbour -> frontend:80`,
		"frontend neighbour myproject/client elsewhere/frontend -> db:6379",
	},
	{
		"rules of several policies add up",
		toDB("  - {from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}") + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: more}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress:
  - {from: [{podSelector: {matchLabels: {tier: back}}}], ports: [{port: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none}
spec:
  podSelector: {}
  policyTypes: [Ingress]
`,
		`frontend -> db:6379
		 neighbour -> db:8080`,
		`frontend -> db:8080 neighbour:80
		 neighbour -> db:6379 db:6379/udp`,
	},
	{
		"both ends have a say",
		denyEgress + toDB("  - from: [{podSelector: {}}]") + `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-redis}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: redis}]}
`,
		"frontend neighbour -> db:6379",
		`frontend neighbour -> db:8080 db:6379/udp
		 myproject/client -> db:6379
		 frontend -> neighbour:80`,
	},
}
