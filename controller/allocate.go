package controller

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
)

// AllocatedCondition is the type of the condition that a Service has while it
// lacks an address or a node port that it asked for, with status False. Services
// that have all they want don't have the condition.
const AllocatedCondition = api.GroupTwill + "/Allocated"

// The reasons of the AllocatedCondition.
const (
	ReasonTaken       = "Taken"       // another service has it
	ReasonOutOfRange  = "OutOfRange"  // it is not in the configured ranges
	ReasonExhausted   = "Exhausted"   // the range has none left
	ReasonUnavailable = "Unavailable" // the cluster lacks the address family
)

// problem is why a service has not got what it wants.
type problem struct{ reason, message string }

// reconcileAllocation gives the service the addresses and node ports that it
// lacks, and tells on it what it can't have.
func (r *reconciler) reconcileAllocation(ctx context.Context, key api.Key) error {
	r.mu.Lock()
	svc := r.state.service(key)
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		r.mu.Unlock()
		return nil
	}
	want := svc.DeepCopy()
	// What was chosen here before and never got into the store is given back,
	// and will be found again.
	concerned := r.claim(svc)
	problems := r.allocator.allocate(want, r.claims)
	concerned = append(concerned, r.claim(want)...)
	r.noteStarved(key, problems)
	r.mu.Unlock()
	for _, other := range concerned {
		if other != key {
			r.queue.add(item{api.ServiceKind, other})
		}
	}

	newTrouble := setCondition(want, problems)
	if reflect.DeepEqual(svc, want) {
		return nil
	}
	stored, err := r.store.Update(ctx, want)
	if err != nil {
		return err
	}
	if newTrouble {
		r.log.Warn("a service can't have what it asks for", "service", key.String(), "reason", problems[0].reason, "detail", problems[0].message)
	}
	// The watch will tell it too, but the next reconciliation may be sooner.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.service(key) == svc {
		r.state.putService(stored.(*corev1.Service))
	}
	return nil
}

func (r *reconciler) noteStarved(key api.Key, problems []problem) {
	delete(r.starved, key)
	for _, p := range problems {
		if p.reason == ReasonExhausted {
			r.starved[key] = struct{}{}
		}
	}
}

// setCondition shows the problems on the service, and reports whether they are
// others than before.
func setCondition(svc *corev1.Service, problems []problem) (news bool) {
	if len(problems) == 0 {
		apimeta.RemoveStatusCondition(&svc.Status.Conditions, AllocatedCondition)
		return false
	}
	var messages []string
	for _, p := range problems {
		messages = append(messages, p.message)
	}
	return apimeta.SetStatusCondition(&svc.Status.Conditions, metav1.Condition{
		Type:    AllocatedCondition,
		Status:  metav1.ConditionFalse,
		Reason:  problems[0].reason,
		Message: strings.Join(messages, "; "),
	})
}

// allocate fills in what the service lacks and returns what it can't have.
func (r ranges) allocate(svc *corev1.Service, c *claims) []problem {
	var problems []problem
	if svc.Spec.ClusterIP != corev1.ClusterIPNone && len(r.cidrs) > 0 {
		problems = r.allocateAddresses(svc, c)
	}
	if wantsNodePorts(&svc.Spec) {
		problems = append(problems, r.allocatePorts(svc, c)...)
	}
	if wantsHealthCheck(&svc.Spec) {
		problems = append(problems, r.allocatePort(&svc.Spec.HealthCheckNodePort, corev1.ProtocolTCP, healthCheckHint, svc, c)...)
	}
	return problems
}

func (r ranges) allocateAddresses(svc *corev1.Service, c *claims) (problems []problem) {
	s, key := &svc.Spec, api.KeyOf(svc)
	requested := requestedAddresses(s)
	policy, families := r.families(s)
	var addresses []string
	for i, family := range families {
		if i < len(requested) {
			addresses = append(addresses, requested[i])
			if p := r.judge(requested[i], key, c); p != nil {
				problems = append(problems, *p)
			}
			continue
		}
		cidr, ok := r.cidr(family)
		if !ok {
			return append(problems, problem{ReasonUnavailable, fmt.Sprintf("the cluster has no %s service range", family)})
		}
		res, err := r.pickAddress(cidr, key, c)
		if err != nil {
			return append(problems, problem{ReasonExhausted, fmt.Sprintf("no address is left in %s", cidr)})
		}
		addresses = append(addresses, res.addr.String())
	}
	s.ClusterIP, s.ClusterIPs = addresses[0], addresses
	s.IPFamilies, s.IPFamilyPolicy = families, &policy
	if policy == corev1.IPFamilyPolicyRequireDualStack && len(families) < 2 {
		problems = append(problems, problem{ReasonUnavailable, "the service requires two address families and the cluster has one"})
	}
	return problems
}

// judge says why a requested address can't be had.
func (r ranges) judge(text string, key api.Key, c *claims) *problem {
	addr, err := netip.ParseAddr(text)
	if err != nil || !r.contains(addr.Unmap()) {
		return &problem{ReasonOutOfRange, fmt.Sprintf("%s is not in the service range", text)}
	}
	return r.judgeOwner(resource{addr: addr.Unmap()}, key, c)
}

func (r ranges) judgeOwner(res resource, key api.Key, c *claims) *problem {
	if owner, ok := c.owner(res); ok && owner != key {
		return &problem{ReasonTaken, fmt.Sprintf("%s belongs to service %s", res, owner)}
	}
	return nil
}

// families completes the service's policy and families: what it says, then what
// its addresses say, then the cluster's primary family; and a second one if the
// policy likes one and the cluster has it. It is never empty.
func (r ranges) families(s *corev1.ServiceSpec) (corev1.IPFamilyPolicy, []corev1.IPFamily) {
	families := append([]corev1.IPFamily(nil), s.IPFamilies...)
	for _, text := range requestedAddresses(s)[min(len(families), len(requestedAddresses(s))):] {
		if addr, err := netip.ParseAddr(text); err == nil {
			families = append(families, familyOf(addr.Unmap()))
		}
	}
	if len(families) == 0 {
		primary := corev1.IPv4Protocol
		if len(r.cidrs) > 0 {
			primary = familyOf(r.cidrs[0].Addr())
		}
		families = []corev1.IPFamily{primary}
	}
	policy := corev1.IPFamilyPolicySingleStack
	switch {
	case s.IPFamilyPolicy != nil:
		policy = *s.IPFamilyPolicy
	case len(families) > 1:
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	if policy == corev1.IPFamilyPolicySingleStack {
		return policy, families[:1]
	}
	second := corev1.IPv6Protocol
	if families[0] == corev1.IPv6Protocol {
		second = corev1.IPv4Protocol
	}
	if _, ok := r.cidr(second); ok && len(families) == 1 {
		families = append(families, second)
	}
	return policy, families
}

func (r ranges) allocatePorts(svc *corev1.Service, c *claims) (problems []problem) {
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		found := r.allocatePort(&p.NodePort, p.Protocol, p.Port, svc, c)
		problems = append(problems, found...)
		if len(found) > 0 && found[0].reason == ReasonExhausted {
			break
		}
	}
	return problems
}

// healthCheckHint is what stands for the port where a service's health check
// looks for a node port: no service has it.
const healthCheckHint = 0

// allocatePort gives a port of the service a node port, or judges the one that it
// asks for.
func (r ranges) allocatePort(port *int32, protocol corev1.Protocol, hint int32, svc *corev1.Service, c *claims) []problem {
	key := api.KeyOf(svc)
	if *port != 0 {
		if int(*port) < r.ports[0] || int(*port) > r.ports[1] {
			return []problem{{ReasonOutOfRange, fmt.Sprintf("node port %d is not in %d-%d", *port, r.ports[0], r.ports[1])}}
		}
		if taken := r.judgeOwner(nodePort(protocol, *port), key, c); taken != nil {
			return []problem{*taken}
		}
		return nil
	}
	res, err := r.pickPort(protocol, hint, key, c)
	if err != nil {
		return []problem{{ReasonExhausted, fmt.Sprintf("no node port is left in %d-%d", r.ports[0], r.ports[1])}}
	}
	*port = res.port
	// So that the service's next port does not get the same.
	c.replace(key, svc.CreationTimestamp.Time, claimedBy(svc))
	return nil
}
