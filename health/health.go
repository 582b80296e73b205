// Package health is the registry of everything that can be wrong: a stable code,
// a sentence and a remedy each. Status screens, node conditions, metrics and
// the documentation all read it.
//
// It never finds out what is wrong: rooms report, health remembers.
package health

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Code names a condition. Codes are stable: dashboards and scripts use them.
type Code string

// Definition describes a condition that can arise.
type Definition struct {
	Code   Code
	Title  string // what it means, a sentence without a full stop
	Remedy string // what to do
}

// The codes.
const (
	StoreUnreachable     Code = "StoreUnreachable"
	NotSynced            Code = "NotSynced"
	DataplaneWriteFailed Code = "DataplaneWriteFailed"
	NodeAddressLost      Code = "NodeAddressLost"
	NodeNameTaken        Code = "NodeNameTaken"
	NodeAddressTaken     Code = "NodeAddressTaken"
	NoPathToNode         Code = "NoPathToNode"
	PoolOverlap          Code = "PoolOverlap"
	ObjectInvalid        Code = "ObjectInvalid"
	ServiceNotProgrammed Code = "ServiceNotProgrammed"
	ServiceNotAllocated  Code = "ServiceNotAllocated"
	PoolExhausted        Code = "PoolExhausted"
	PodInterfaceMissing  Code = "PodInterfaceMissing"
	JournalRebuilt       Code = "JournalRebuilt"
	JournalWriteFailed   Code = "JournalWriteFailed"
	RuntimeNotConfigured Code = "RuntimeNotConfigured"
	BlockLost            Code = "BlockLost"
	AgentSilent          Code = "AgentSilent"
	ClockAhead           Code = "ClockAhead"
	ProxyPortTaken       Code = "ProxyPortTaken"
	ProxyRulesLeft       Code = "ProxyRulesLeft"
)

var definitions = []Definition{
	{StoreUnreachable, "the agent can't reach the store; what is programmed stays, changes wait",
		"check the store's health and the node's way to it (--etcd-endpoints)"},
	{NotSynced, "the agent has not yet seen all intent; new pods wait",
		"wait; if it lasts, see StoreUnreachable and the agent's log"},
	{DataplaneWriteFailed, "the kernel refused something that the plan asks for; the agent tries again",
		"read the detail; `twill plan NODE` prints the whole plan"},
	{NodeAddressLost, "no device has the node's address any more; what is programmed stays",
		"give the device an address and the node a default route, or correct --node-ip"},
	{NodeNameTaken, "two machines have one node's name; the agent of the second does nothing",
		"give one of them another name (--node-name, or the host's name) and restart its agent"},
	{NodeAddressTaken, "another Node has the address of this node; only one of them can be reached",
		"delete the Node that is not in use any more, such as of a host that was renamed, or give one of the hosts another address"},
	{NoPathToNode, "no back end can carry packets to a node",
		"compare `twill fabric get` with what the peer receives (`twill describe node`)"},
	{PoolOverlap, "a range of pod addresses overlaps addresses that nodes need; what would lead packets to these astray is not routed",
		"delete the pool and add one with a free range; if the detail names a device that another network left, remove the device"},
	{ObjectInvalid, "an object in the store can't be understood and counts as absent",
		"correct it with `twill apply`, which validates"},
	{ServiceNotProgrammed, "a service asks for something that Twill does not do",
		"read the detail and change the service"},
	{ServiceNotAllocated, "a service could not be given the cluster IP or node port that it asks for",
		"read the detail and ask for another, or for none"},
	{PoolExhausted, "no address of a family is left for new pods of this node; they are refused, also where the other family has some",
		"read the detail; delete pods, or add a pool of that family"},
	{PodInterfaceMissing, "a pod has an address and no interface of Twill on its node: it is cut off, unless another network carries it",
		"restart the pod (`kubectl delete pod`, where a controller makes another)"},
	{JournalRebuilt, "the journal of addresses was damaged and was rebuilt from the kernel",
		"look at the disk; the damaged file is kept beside it"},
	{JournalWriteFailed, "the journal of addresses can't be written; no pod can be attached, and addresses of detached ones stay taken",
		"read the detail; most likely the file system of --state-dir is full"},
	{RuntimeNotConfigured, "the container runtime takes another network for pods, or none",
		"read the detail; remove the other network's configuration"},
	{BlockLost, "a block of addresses is another node's by now; pods with addresses from it can't be reached from other nodes",
		"restart these pods, so that they get new addresses"},
	{AgentSilent, "the node's agent has not renewed its lease",
		"see whether `twill agent` runs on the node, its log, and the node's clock"},
	{ClockAhead, "by the node's clock its lease was renewed later than now; whether its agent still lives can't be told",
		"set the clock of the node, or of the machine that asks"},
	{ProxyPortTaken, "a port where load balancers or monitoring expect the program that serves Services is another's",
		"read the detail; if a kube-proxy has the port, let it go or say --services off"},
	{ProxyRulesLeft, "rules of a kube-proxy are in the kernel though Twill serves Services; they still lead connections where it last led them",
		"run `kube-proxy --cleanup` on the node, or reboot it; if a kube-proxy still runs, delete its DaemonSet before, or say --services off"},
}

// Reporter is the component that reports a condition.
type Reporter string

// The reporters.
const (
	Agent      Reporter = "agent"      // on a Node, as a metric, in `twill status`
	Controller Reporter = "controller" // on the object, in `twill status`
	Command    Reporter = "command"    // `twill status` finds it, while it looks
)

// reporters are those of the conditions that are not an agent's.
var reporters = map[Code]Reporter{
	ServiceNotAllocated: Controller,
	AgentSilent:         Command,
	ClockAhead:          Command,
}

// Reporter returns the component that reports the condition; no other does.
func (d Definition) Reporter() Reporter { return cmp.Or(reporters[d.Code], Agent) }

// Definitions lists every condition there is.
func Definitions() []Definition { return definitions }

// Lookup finds a condition's definition, also one of those that preflight looks
// for on a host.
func Lookup(code Code) (Definition, bool) {
	for _, d := range definitions {
		if d.Code == code {
			return d, true
		}
	}
	d, ok := LookupHost(code)
	return d.Definition, ok
}

// Condition is something that is wrong now.
type Condition struct {
	Code    Code   `json:"code"`
	Subject string `json:"subject,omitempty"` // what it is about
	Detail  string `json:"detail"`
}

// String is one line without the remedy.
func (c Condition) String() string {
	if c.Subject == "" {
		return fmt.Sprintf("%s: %s", c.Code, c.Detail)
	}
	return fmt.Sprintf("%s %s: %s", c.Code, c.Subject, c.Detail)
}

// Message is the text by which a Node's condition lists conditions of one code, a
// line each; Details reads it.
func Message(conditions []Condition) string {
	var lines []string
	for _, c := range conditions {
		text := c.Detail
		if c.Subject != "" {
			text = c.Subject + subjectEnd + c.Detail
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n")
}

// Details are the details of a Message by their subjects, of a code whose conditions
// have subjects.
func Details(message string) map[string]string {
	details := map[string]string{}
	for line := range strings.SplitSeq(message, "\n") {
		if subject, detail, ok := strings.Cut(line, subjectEnd); ok {
			details[subject] = detail
		}
	}
	return details
}

// subjectEnd is between subject and detail of a Message.
const subjectEnd = ": "

// Tracker holds what is wrong now. The zero value is ready; it may be used from
// several goroutines.
type Tracker struct {
	mu      sync.Mutex
	current map[key]string
	changed func()
}

type key struct {
	code    Code
	subject string
}

// OnChange sets the function that is called, without locks held, after the
// conditions changed.
func (t *Tracker) OnChange(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = f
}

// Set reports that something is wrong.
func (t *Tracker) Set(code Code, subject, detail string) {
	t.update(func() bool {
		k := key{code, subject}
		if old, ok := t.current[k]; ok && old == detail {
			return false
		}
		t.current[k] = detail
		return true
	})
}

// Clear reports that it is right again.
func (t *Tracker) Clear(code Code, subject string) {
	t.update(func() bool {
		_, ok := t.current[key{code, subject}]
		delete(t.current, key{code, subject})
		return ok
	})
}

// Replace makes the given subjects with their details the only ones of a code.
func (t *Tracker) Replace(code Code, details map[string]string) {
	t.update(func() bool {
		changed := false
		for k := range t.current {
			if _, ok := details[k.subject]; k.code == code && !ok {
				delete(t.current, k)
				changed = true
			}
		}
		for subject, detail := range details {
			if old, ok := t.current[key{code, subject}]; !ok || old != detail {
				t.current[key{code, subject}] = detail
				changed = true
			}
		}
		return changed
	})
}

func (t *Tracker) update(f func() bool) {
	t.mu.Lock()
	if t.current == nil {
		t.current = map[key]string{}
	}
	changed, call := f(), t.changed
	t.mu.Unlock()
	if changed && call != nil {
		call()
	}
}

// Has says whether anything is wrong in that way.
func (t *Tracker) Has(code Code) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.current {
		if k.code == code {
			return true
		}
	}
	return false
}

// Conditions lists what is wrong, sorted.
func (t *Tracker) Conditions() []Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Condition, 0, len(t.current))
	for k, detail := range t.current {
		out = append(out, Condition{k.code, k.subject, detail})
	}
	slices.SortFunc(out, func(a, b Condition) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Subject, b.Subject))
	})
	return out
}
