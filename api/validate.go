package api

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate lists everything that is wrong with one object by itself, after
// Default, in the words of the API server where that has the same rule.
// Addresses and prefixes must be in strict form everywhere: no leading zeros,
// no IPv4-mapped IPv6, no bits beyond the prefix length.
func Validate(obj Object) field.ErrorList {
	kind := KindOf(obj)
	if kind == nil {
		return field.ErrorList{field.Invalid(field.NewPath("kind"), fmt.Sprintf("%T", obj), "Twill does not keep this type")}
	}
	errs := validateMeta(obj, kind)
	switch o := obj.(type) {
	case *corev1.Namespace:
		errs = append(errs, validateNamespace(o)...)
	case *corev1.Node:
		errs = append(errs, validateNode(o)...)
	case *corev1.Service:
		errs = append(errs, validateService(o)...)
	case *discoveryv1.EndpointSlice:
		errs = append(errs, validateEndpointSlice(o)...)
	case *networkingv1.NetworkPolicy:
		errs = append(errs, validateNetworkPolicy(o)...)
	case *IPPool:
		errs = append(errs, validateIPPool(o)...)
	case *IPAMBlock:
		errs = append(errs, validateIPAMBlock(o)...)
	case *WorkloadEndpoint:
		errs = append(errs, validateWorkloadEndpoint(o)...)
	case *FabricConfiguration:
		errs = append(errs, validateFabricConfiguration(o)...)
	}
	sortErrors(errs)
	return errs
}

// ValidateUpdate lists what may not change from old to new. It does not repeat
// Validate.
func ValidateUpdate(new, old Object) field.ErrorList {
	meta, spec := field.NewPath("metadata"), field.NewPath("spec")
	errs := apivalidation.ValidateImmutableField(new.GetName(), old.GetName(), meta.Child("name"))
	errs = append(errs, apivalidation.ValidateImmutableField(new.GetNamespace(), old.GetNamespace(), meta.Child("namespace"))...)
	if new.GetUID() != "" {
		errs = append(errs, apivalidation.ValidateImmutableField(new.GetUID(), old.GetUID(), meta.Child("uid"))...)
	}
	if KindOf(new) != KindOf(old) {
		return append(errs, field.Invalid(field.NewPath("kind"), KindOf(new).Name, "may not change"))
	}
	switch n := new.(type) {
	case *corev1.Node:
		if o := old.(*corev1.Node); o.Spec.PodCIDR != "" {
			errs = append(errs, apivalidation.ValidateImmutableField(n.Spec.PodCIDR, o.Spec.PodCIDR, spec.Child("podCIDR"))...)
		}
	case *corev1.Service:
		errs = append(errs, validateServiceUpdate(n, old.(*corev1.Service))...)
	case *discoveryv1.EndpointSlice:
		o := old.(*discoveryv1.EndpointSlice)
		errs = append(errs, apivalidation.ValidateImmutableField(n.AddressType, o.AddressType, field.NewPath("addressType"))...)
	case *IPPool:
		o := old.(*IPPool)
		errs = append(errs, apivalidation.ValidateImmutableField(n.Spec.CIDR, o.Spec.CIDR, spec.Child("cidr"))...)
		errs = append(errs, apivalidation.ValidateImmutableField(n.Spec.BlockSize, o.Spec.BlockSize, spec.Child("blockSize"))...)
	case *IPAMBlock:
		o := old.(*IPAMBlock)
		errs = append(errs, apivalidation.ValidateImmutableField(n.Spec.CIDR, o.Spec.CIDR, spec.Child("cidr"))...)
		errs = append(errs, apivalidation.ValidateImmutableField(n.Spec.Affinity, o.Spec.Affinity, spec.Child("affinity"))...)
	}
	return errs
}

// sortErrors makes the order independent of the order of maps.
func sortErrors(errs field.ErrorList) {
	slices.SortStableFunc(errs, func(a, b *field.Error) int {
		return cmp.Or(cmp.Compare(a.Field, b.Field), cmp.Compare(a.ErrorBody(), b.ErrorBody()))
	})
}

func validateMeta(obj Object, kind *Kind) field.ErrorList {
	path := field.NewPath("metadata")
	nameRule := apivalidation.NameIsDNSSubdomain
	switch kind {
	case NamespaceKind:
		nameRule = apivalidation.NameIsDNSLabel
	case ServiceKind:
		nameRule = apivalidation.NameIsDNS1035Label
	}
	var errs field.ErrorList
	for _, e := range apivalidation.ValidateObjectMetaAccessor(obj, kind.Namespaced, nameRule, path) {
		if e.Type == field.ErrorTypeRequired && e.Field == path.Child("name").String() {
			e.Detail = ""
		}
		errs = append(errs, e)
	}
	if obj.GetGenerateName() != "" {
		errs = append(errs, field.Forbidden(path.Child("generateName"), "Twill makes up no names: set metadata.name"))
	}
	if len(obj.GetFinalizers()) > 0 {
		errs = append(errs, field.Forbidden(path.Child("finalizers"), "Twill deletes at once and waits for nobody: remove them"))
	}
	return errs
}

func validateNamespace(n *corev1.Namespace) field.ErrorList {
	path := field.NewPath("metadata", "labels").Key(corev1.LabelMetadataName)
	if got, ok := n.Labels[corev1.LabelMetadataName]; ok && got != n.Name {
		return field.ErrorList{field.Invalid(path, got, "must be the namespace's name")}
	}
	return nil
}

func validateNode(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validatePrefix(spec.Child("podCIDRs").Index(i), cidr)...)
	}
	switch {
	case n.Spec.PodCIDR != "" && len(n.Spec.PodCIDRs) == 0:
		errs = append(errs, validatePrefix(spec.Child("podCIDR"), n.Spec.PodCIDR)...)
	case len(n.Spec.PodCIDRs) > 0 && n.Spec.PodCIDRs[0] != n.Spec.PodCIDR:
		errs = append(errs, field.Invalid(spec.Child("podCIDR"), n.Spec.PodCIDR, "must be the first of `podCIDRs`"))
	}
	for i, a := range n.Status.Addresses {
		path := field.NewPath("status", "addresses").Index(i)
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP:
			errs = append(errs, validation.IsValidIP(path.Child("address"), a.Address)...)
		case corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalDNS:
		default:
			errs = append(errs, field.NotSupported(path.Child("type"), a.Type, []corev1.NodeAddressType{
				corev1.NodeHostName, corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeInternalDNS, corev1.NodeExternalDNS}))
		}
	}
	if _, err := NodeReceives(n); err != nil {
		path := field.NewPath("metadata", "annotations").Key(ReceivesAnnotation)
		errs = append(errs, field.Invalid(path, n.Annotations[ReceivesAnnotation], "must be JSON such as {\"host-gw\":{}}"))
	}
	return errs
}

// validatePrefix requires a prefix with no bits beyond its length.
func validatePrefix(path *field.Path, text string) field.ErrorList {
	if text == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return validation.IsValidCIDRForLegacyField(path, text, true, nil)
}

// validateAddress requires an address that can be one of a host elsewhere.
func validateAddress(path *field.Path, text string) field.ErrorList {
	if errs := validation.IsValidIPForLegacyField(path, text, true, nil); len(errs) > 0 {
		return errs
	}
	ip, _ := netip.ParseAddr(text)
	reason := ""
	switch {
	case ip.Zone() != "":
		reason = "must not have a zone"
	case ip.IsUnspecified():
		reason = fmt.Sprintf("may not be unspecified (%v)", text)
	case ip.IsLoopback():
		reason = "may not be in the loopback range (127.0.0.0/8, ::1/128)"
	case ip.IsLinkLocalUnicast():
		reason = "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
	case ip.IsLinkLocalMulticast():
		reason = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
	}
	if reason != "" {
		return field.ErrorList{field.Invalid(path, text, reason)}
	}
	return nil
}

var transportProtocols = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}

func validateProtocol(path *field.Path, p corev1.Protocol) field.ErrorList {
	switch {
	case p == "":
		return field.ErrorList{field.Required(path, "")}
	case !slices.Contains(transportProtocols, p):
		return field.ErrorList{field.NotSupported(path, p, transportProtocols)}
	}
	return nil
}

func validatePort(path *field.Path, port int32) field.ErrorList {
	return invalid(path, port, validation.IsValidPortNum(int(port)))
}

func validateLabels(path *field.Path, labels map[string]string) field.ErrorList {
	return metav1validation.ValidateLabels(labels, path)
}

// invalid makes an error of each message.
func invalid(path *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range messages {
		errs = append(errs, field.Invalid(path, value, m))
	}
	return errs
}
