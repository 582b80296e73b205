package api

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	lowestNodePort         = 30000
	highestNodePort        = 32767
	maximumAffinitySeconds = 86400
)

func isHeadless(s *corev1.ServiceSpec) bool { return s.ClusterIP == corev1.ClusterIPNone }

func validateService(svc *corev1.Service) field.ErrorList {
	path, s := field.NewPath("spec"), &svc.Spec
	errs := validateServiceType(path, s)
	errs = append(errs, validateServicePorts(path.Child("ports"), s)...)
	errs = append(errs, validateLabels(path.Child("selector"), s.Selector)...)
	errs = append(errs, validateAffinity(path, s)...)
	errs = append(errs, validateClusterIPs(path, s)...)
	errs = append(errs, validateTrafficPolicies(path, s)...)
	for i, ip := range s.ExternalIPs {
		errs = append(errs, validateAddress(path.Child("externalIPs").Index(i), ip)...)
	}
	return append(errs, validateLoadBalancer(path, s)...)
}

var serviceTypes = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName,
	corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}

func validateServiceType(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	switch s.Type {
	case corev1.ServiceTypeClusterIP:
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if isHeadless(s) {
			errs = append(errs, field.Invalid(path.Child("clusterIP"), s.ClusterIP, "may not be set to 'None' for "+string(s.Type)+" services"))
		}
	case corev1.ServiceTypeExternalName:
		if s.ClusterIP != "" || len(s.ClusterIPs) > 0 {
			errs = append(errs, field.Forbidden(path.Child("clusterIPs"), "may not be set for ExternalName services"))
		}
		name := strings.TrimSuffix(s.ExternalName, ".")
		if name == "" {
			errs = append(errs, field.Required(path.Child("externalName"), ""))
		} else {
			errs = append(errs, invalid(path.Child("externalName"), s.ExternalName, validation.IsDNS1123Subdomain(name))...)
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), s.Type, serviceTypes))
	}
	if s.Type != corev1.ServiceTypeExternalName && s.ExternalName != "" {
		errs = append(errs, field.Forbidden(path.Child("externalName"), "may only be used when `type` is 'ExternalName'"))
	}
	return errs
}

func validateServicePorts(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if len(s.Ports) == 0 && !isHeadless(s) && s.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path, ""))
	}
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	names, ports, nodePorts := map[string]bool{}, map[number]bool{}, map[number]bool{}
	for i, p := range s.Ports {
		at := path.Index(i)
		errs = append(errs, validateServicePort(at, &p, s, len(s.Ports) > 1)...)
		if p.Name != "" && names[p.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
		}
		names[p.Name] = true
		if ports[number{p.Protocol, p.Port}] {
			errs = append(errs, field.Duplicate(at, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}))
		}
		ports[number{p.Protocol, p.Port}] = true
		if p.NodePort != 0 && nodePorts[number{p.Protocol, p.NodePort}] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
		}
		nodePorts[number{p.Protocol, p.NodePort}] = true
	}
	return errs
}

func validateServicePort(path *field.Path, p *corev1.ServicePort, s *corev1.ServiceSpec, needsName bool) field.ErrorList {
	var errs field.ErrorList
	if p.Name != "" {
		errs = append(errs, invalid(path.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
	} else if needsName {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	errs = append(errs, validatePort(path.Child("port"), p.Port)...)
	errs = append(errs, validateProtocol(path.Child("protocol"), p.Protocol)...)
	if p.TargetPort.Type == intstr.String {
		errs = append(errs, invalid(path.Child("targetPort"), p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal))...)
	} else if p.TargetPort.IntVal != p.Port { // else it was said about the port already
		errs = append(errs, validatePort(path.Child("targetPort"), p.TargetPort.IntVal)...)
	}
	if p.AppProtocol != nil {
		errs = append(errs, invalid(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
	}
	switch {
	case p.NodePort == 0:
	case s.Type == corev1.ServiceTypeClusterIP || s.Type == corev1.ServiceTypeExternalName:
		errs = append(errs, field.Forbidden(path.Child("nodePort"), "may not be used when `type` is '"+string(s.Type)+"'"))
	case p.NodePort < lowestNodePort || p.NodePort > highestNodePort:
		errs = append(errs, field.Invalid(path.Child("nodePort"), p.NodePort, "provided port is not in the valid range. The range of valid ports is 30000-32767"))
	}
	return errs
}

func validateAffinity(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	config := path.Child("sessionAffinityConfig")
	switch s.SessionAffinity {
	case corev1.ServiceAffinityNone:
		if s.SessionAffinityConfig != nil {
			return field.ErrorList{field.Forbidden(config, "must not be set when session affinity is None")}
		}
	case corev1.ServiceAffinityClientIP:
		timeout := config.Child("clientIP", "timeoutSeconds")
		if s.SessionAffinityConfig == nil || s.SessionAffinityConfig.ClientIP == nil || s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			return field.ErrorList{field.Required(timeout, "when session affinity type is ClientIP")}
		}
		if v := *s.SessionAffinityConfig.ClientIP.TimeoutSeconds; v < 1 || v > maximumAffinitySeconds {
			return field.ErrorList{field.Invalid(timeout, v, "must be greater than 0 and less than or equal to 86400")}
		}
	default:
		return field.ErrorList{field.NotSupported(path.Child("sessionAffinity"), s.SessionAffinity,
			[]corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone})}
	}
	return nil
}

func validateClusterIPs(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	ips := path.Child("clusterIPs")
	var errs field.ErrorList
	if s.Type == corev1.ServiceTypeExternalName {
		if len(s.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(path.Child("ipFamilies"), "may not be set for ExternalName services"))
		}
		if s.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(path.Child("ipFamilyPolicy"), "may not be set for ExternalName services"))
		}
		return errs
	}
	errs = append(errs, validateFamilies(path, s)...)
	switch {
	case len(s.ClusterIPs) == 0:
		return errs
	case s.ClusterIP == "":
		return append(errs, field.Invalid(ips, s.ClusterIPs, "must be empty when `clusterIP` is not specified"))
	case s.ClusterIPs[0] != s.ClusterIP:
		return append(errs, field.Invalid(ips, s.ClusterIPs, "first value must match `clusterIP`"))
	case len(s.ClusterIPs) > 2:
		return append(errs, field.Invalid(ips, s.ClusterIPs, "may only hold up to 2 values"))
	}
	families := map[corev1.IPFamily]bool{}
	for i, text := range s.ClusterIPs {
		if text == corev1.ClusterIPNone {
			if len(s.ClusterIPs) > 1 {
				errs = append(errs, field.Invalid(ips.Index(i), text, "'None' must be the first and only value"))
			}
			continue
		}
		at := ips.Index(i)
		if i == 0 {
			at = path.Child("clusterIP") // where most people wrote it
		}
		bad := validation.IsValidIPForLegacyField(at, text, true, nil)
		errs = append(errs, bad...)
		if len(bad) > 0 {
			continue
		}
		family := familyOf(text)
		if families[family] {
			errs = append(errs, field.Invalid(ips, s.ClusterIPs, "may specify no more than one IP for each IP family"))
		}
		families[family] = true
		if i < len(s.IPFamilies) && s.IPFamilies[i] != family {
			errs = append(errs, field.Invalid(at, text, "expected an "+string(s.IPFamilies[i])+" value as indicated by `ipFamilies`"))
		}
	}
	return errs
}

func familyOf(ip string) corev1.IPFamily {
	if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func validateFamilies(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	known := []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	for i, f := range s.IPFamilies {
		at := path.Child("ipFamilies").Index(i)
		if !slices.Contains(known, f) {
			errs = append(errs, field.NotSupported(at, f, known))
		} else if slices.Contains(s.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(at, f))
		}
	}
	if s.IPFamilyPolicy == nil {
		return errs
	}
	policies := []corev1.IPFamilyPolicy{corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack}
	if !slices.Contains(policies, *s.IPFamilyPolicy) {
		errs = append(errs, field.NotSupported(path.Child("ipFamilyPolicy"), *s.IPFamilyPolicy, policies))
	}
	if *s.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack {
		if len(s.ClusterIPs) > 1 || len(s.IPFamilies) > 1 {
			errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), *s.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when two addresses or families are given"))
		}
	}
	return errs
}

func validateTrafficPolicies(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	internal := path.Child("internalTrafficPolicy")
	policies := []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}
	if s.InternalTrafficPolicy != nil && !slices.Contains(policies, *s.InternalTrafficPolicy) {
		errs = append(errs, field.NotSupported(internal, *s.InternalTrafficPolicy, policies))
	}
	external := path.Child("externalTrafficPolicy")
	outside := []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}
	switch {
	case !reachableFromOutside(s) && s.ExternalTrafficPolicy != "":
		errs = append(errs, field.Invalid(external, s.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	case reachableFromOutside(s) && !slices.Contains(outside, s.ExternalTrafficPolicy):
		errs = append(errs, field.NotSupported(external, s.ExternalTrafficPolicy, outside))
	}
	healthCheck := path.Child("healthCheckNodePort")
	local := s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	switch p := s.HealthCheckNodePort; {
	case p == 0:
	case !local:
		errs = append(errs, field.Invalid(healthCheck, p, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	default:
		errs = append(errs, validatePort(healthCheck, p)...)
	}
	if d := s.TrafficDistribution; d != nil {
		known := []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone}
		if !slices.Contains(known, *d) {
			errs = append(errs, field.NotSupported(path.Child("trafficDistribution"), *d, known))
		} else {
			errs = append(errs, field.Forbidden(path.Child("trafficDistribution"), "the controller puts no topology hints into EndpointSlices; leave it out"))
		}
	}
	return errs
}

func validateLoadBalancer(path *field.Path, s *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	if s.Type != corev1.ServiceTypeLoadBalancer {
		const reason = "may only be used when `type` is 'LoadBalancer'"
		if len(s.LoadBalancerSourceRanges) > 0 {
			errs = append(errs, field.Forbidden(path.Child("loadBalancerSourceRanges"), reason))
		}
		if s.AllocateLoadBalancerNodePorts != nil {
			errs = append(errs, field.Forbidden(path.Child("allocateLoadBalancerNodePorts"), reason))
		}
		if s.LoadBalancerClass != nil {
			errs = append(errs, field.Forbidden(path.Child("loadBalancerClass"), reason))
		}
		return errs
	}
	for i, text := range s.LoadBalancerSourceRanges {
		// The API server allows space around a range.
		errs = append(errs, validatePrefix(path.Child("loadBalancerSourceRanges").Index(i), strings.TrimSpace(text))...)
	}
	if c := s.LoadBalancerClass; c != nil {
		errs = append(errs, invalid(path.Child("loadBalancerClass"), *c, validation.IsQualifiedName(*c))...)
	}
	if s.LoadBalancerIP != "" {
		errs = append(errs, validation.IsValidIPForLegacyField(path.Child("loadBalancerIP"), s.LoadBalancerIP, true, nil)...)
	}
	return errs
}

// validateServiceUpdate: an address, once given, stays until the service is
// deleted or becomes an ExternalName, which has none.
func validateServiceUpdate(new, old *corev1.Service) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if new.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if old.Spec.ClusterIP != "" {
		errs = append(errs, apivalidation.ValidateImmutableField(new.Spec.ClusterIP, old.Spec.ClusterIP, path.Child("clusterIP"))...)
	}
	if len(old.Spec.ClusterIPs) > 1 && len(new.Spec.ClusterIPs) > 1 {
		errs = append(errs, apivalidation.ValidateImmutableField(new.Spec.ClusterIPs[1], old.Spec.ClusterIPs[1], path.Child("clusterIPs").Index(1))...)
	}
	if len(old.Spec.IPFamilies) > 0 && len(new.Spec.IPFamilies) > 0 {
		errs = append(errs, apivalidation.ValidateImmutableField(new.Spec.IPFamilies[0], old.Spec.IPFamilies[0], path.Child("ipFamilies").Index(0))...)
	}
	if old.Spec.Type == new.Spec.Type && old.Spec.LoadBalancerClass != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(new.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass, path.Child("loadBalancerClass"))...)
	}
	return errs
}
