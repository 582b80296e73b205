package api

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maximumVNI: the identifier has 24 bits (RFC 7348 §5).
const maximumVNI = 1<<24 - 1

func validateFabricConfiguration(f *FabricConfiguration) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if f.Name != "" && f.Name != FabricConfigurationName {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), f.Name, "must be "+FabricConfigurationName+": a cluster has one FabricConfiguration"))
	}
	for i, name := range f.Spec.Preference {
		at := path.Child("preference").Index(i)
		if !slices.Contains(Backends(), name) {
			errs = append(errs, field.NotSupported(at, name, Backends()))
		} else if slices.Contains(f.Spec.Preference[:i], name) {
			errs = append(errs, field.Duplicate(at, name))
		}
	}
	if v := f.Spec.VXLAN; v != nil {
		if v.VNI < 1 || v.VNI > maximumVNI {
			errs = append(errs, field.Invalid(path.Child("vxlan", "vni"), v.VNI, validation.InclusiveRangeError(1, maximumVNI)))
		}
		errs = append(errs, invalid(path.Child("vxlan", "port"), v.Port, validation.IsValidPortNum(v.Port))...)
	}
	ways := []EgressToOwnNode{EnforceEgressToOwnNode, AllowEgressToOwnNode}
	if w := f.Spec.EgressToOwnNode; w != "" && !slices.Contains(ways, w) {
		errs = append(errs, field.NotSupported(path.Child("egressToOwnNode"), w, ways))
	}
	return errs
}
