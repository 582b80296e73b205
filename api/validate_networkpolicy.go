package api

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateNetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	path := field.NewPath("spec")
	errs := validateLabelSelector(path.Child("podSelector"), &p.Spec.PodSelector)
	for i, rule := range p.Spec.Ingress {
		errs = append(errs, validatePolicyRule(path.Child("ingress").Index(i), "from", rule.From, rule.Ports)...)
	}
	for i, rule := range p.Spec.Egress {
		errs = append(errs, validatePolicyRule(path.Child("egress").Index(i), "to", rule.To, rule.Ports)...)
	}
	known := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}
	types := path.Child("policyTypes")
	if len(p.Spec.PolicyTypes) > len(known) {
		return append(errs, field.Invalid(types, p.Spec.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range p.Spec.PolicyTypes {
		if !slices.Contains(known, t) {
			errs = append(errs, field.NotSupported(types.Index(i), t, known))
		}
	}
	return errs
}

func validatePolicyRule(path *field.Path, direction string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	for i := range ports {
		errs = append(errs, validatePolicyPort(path.Child("ports").Index(i), &ports[i])...)
	}
	for i := range peers {
		errs = append(errs, validatePolicyPeer(path.Child(direction).Index(i), &peers[i])...)
	}
	return errs
}

func validatePolicyPort(path *field.Path, p *networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	if p.Protocol != nil && !slices.Contains(protocols, *p.Protocol) {
		errs = append(errs, field.NotSupported(path.Child("protocol"), *p.Protocol, protocols))
	}
	end := path.Child("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is not specified"))
		}
	case p.Port.Type == intstr.String:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is non-numeric"))
		}
		errs = append(errs, invalid(path.Child("port"), p.Port.StrVal, validation.IsValidPortName(p.Port.StrVal))...)
	default:
		errs = append(errs, validatePort(path.Child("port"), p.Port.IntVal)...)
		if p.EndPort != nil {
			if *p.EndPort < p.Port.IntVal {
				errs = append(errs, field.Invalid(end, *p.EndPort, "must be greater than or equal to `port`"))
			}
			errs = append(errs, validatePort(end, *p.EndPort)...)
		}
	}
	return errs
}

func validatePolicyPeer(path *field.Path, p *networkingv1.NetworkPolicyPeer) field.ErrorList {
	errs := validateLabelSelector(path.Child("podSelector"), p.PodSelector)
	errs = append(errs, validateLabelSelector(path.Child("namespaceSelector"), p.NamespaceSelector)...)
	selects := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case p.IPBlock == nil && !selects:
		errs = append(errs, field.Required(path, "must specify a peer"))
	case p.IPBlock != nil && selects:
		errs = append(errs, field.Forbidden(path, "may not specify both ipBlock and another peer"))
	}
	if p.IPBlock != nil {
		errs = append(errs, validateIPBlock(path.Child("ipBlock"), p.IPBlock)...)
	}
	return errs
}

func validateIPBlock(path *field.Path, b *networkingv1.IPBlock) field.ErrorList {
	errs := validatePrefix(path.Child("cidr"), b.CIDR)
	cidr, bad := netip.ParsePrefix(b.CIDR)
	for i, text := range b.Except {
		at := path.Child("except").Index(i)
		invalidExcept := validatePrefix(at, text)
		errs = append(errs, invalidExcept...)
		if bad != nil || len(invalidExcept) > 0 {
			continue
		}
		except := netip.MustParsePrefix(text)
		if !cidr.Contains(except.Addr()) || except.Bits() <= cidr.Bits() {
			errs = append(errs, field.Invalid(at, text, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

func validateLabelSelector(path *field.Path, s *metav1.LabelSelector) field.ErrorList {
	return metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, path)
}
