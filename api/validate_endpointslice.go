package api

import (
	"fmt"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maximumEndpoints         = 1000
	maximumEndpointAddresses = 100
	maximumEndpointPorts     = 20000
)

var addressTypes = []discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}

func validateEndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	var errs field.ErrorList
	switch path := field.NewPath("addressType"); {
	case s.AddressType == "":
		errs = append(errs, field.Required(path, ""))
	case !slices.Contains(addressTypes, s.AddressType):
		errs = append(errs, field.NotSupported(path, s.AddressType, addressTypes))
	}
	endpoints := field.NewPath("endpoints")
	if len(s.Endpoints) > maximumEndpoints {
		return append(errs, field.TooMany(endpoints, len(s.Endpoints), maximumEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, validateEndpoint(endpoints.Index(i), &s.Endpoints[i], s.AddressType)...)
	}
	return append(errs, validateEndpointPorts(field.NewPath("ports"), s.Ports)...)
}

func validateEndpoint(path *field.Path, e *discoveryv1.Endpoint, kind discoveryv1.AddressType) field.ErrorList {
	var errs field.ErrorList
	addresses := path.Child("addresses")
	switch {
	case len(e.Addresses) == 0:
		errs = append(errs, field.Required(addresses, "must contain at least 1 address"))
	case len(e.Addresses) > maximumEndpointAddresses:
		return append(errs, field.TooMany(addresses, len(e.Addresses), maximumEndpointAddresses))
	}
	for i, text := range e.Addresses {
		errs = append(errs, validateEndpointAddress(addresses.Index(i), text, kind)...)
	}
	if e.NodeName != nil {
		errs = append(errs, invalid(path.Child("nodeName"), *e.NodeName, validation.IsDNS1123Subdomain(*e.NodeName))...)
	}
	if e.Hostname != nil {
		errs = append(errs, invalid(path.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))...)
	}
	return errs
}

func validateEndpointAddress(path *field.Path, text string, kind discoveryv1.AddressType) field.ErrorList {
	if kind == discoveryv1.AddressTypeFQDN {
		return validation.IsFullyQualifiedDomainName(path, text)
	}
	if errs := validateAddress(path, text); len(errs) > 0 {
		return errs
	}
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil:
	case kind == discoveryv1.AddressTypeIPv4 && !ip.Is4():
		return field.ErrorList{field.Invalid(path, text, "must be an IPv4 address")}
	case kind == discoveryv1.AddressTypeIPv6 && ip.Is4():
		return field.ErrorList{field.Invalid(path, text, "must be an IPv6 address")}
	}
	return nil
}

func validateEndpointPorts(path *field.Path, ports []discoveryv1.EndpointPort) field.ErrorList {
	if len(ports) > maximumEndpointPorts {
		return field.ErrorList{field.TooMany(path, len(ports), maximumEndpointPorts)}
	}
	var errs field.ErrorList
	names := map[string]bool{}
	for i, p := range ports {
		at := path.Index(i)
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name != "" {
			errs = append(errs, invalid(at.Child("name"), name, validation.IsDNS1123Label(name))...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), name))
		}
		names[name] = true
		if p.Protocol == nil {
			errs = append(errs, field.Required(at.Child("protocol"), ""))
		} else {
			errs = append(errs, validateProtocol(at.Child("protocol"), *p.Protocol)...)
		}
		if p.Port != nil && (*p.Port < 1 || *p.Port > 65535) {
			errs = append(errs, field.Invalid(at.Child("port"), *p.Port, fmt.Sprintf("must be between %d and %d, inclusive", 1, 65535)))
		}
	}
	return errs
}
