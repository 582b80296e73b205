package cni

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/cni/client"
)

// containerID is what §2 "Parameters" allows.
var containerID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// maxContainerID keeps ids short enough for names of files and keys.
const maxContainerID = 255

// checkID checks CNI_CONTAINERID and CNI_IFNAME.
func checkID(id ID) error {
	if !containerID.MatchString(id.ContainerID) || len(id.ContainerID) > maxContainerID {
		return badVariable("CNI_CONTAINERID", id.ContainerID, "it begins with a letter or digit and goes on with these, _ . -")
	}
	if !isInterfaceName(id.IfName) {
		return badVariable("CNI_IFNAME", id.IfName, "a device's name has 1 to 15 characters, no space, / or :")
	}
	return nil
}

// isInterfaceName says whether the kernel takes the name (dev_valid_name); we
// leave out control characters too.
func isInterfaceName(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r == 0x7f || r == '/' || r == ':' || r == 0x85 || r == 0xa0
	})
}

// podArgs is what CNI_ARGS says.
type podArgs struct {
	namespace, pod, uid string
	ip                  netip.Addr
	mac                 string
}

// parseArgs reads CNI_ARGS: pairs KEY=value with semicolons between them.
func parseArgs(text string) (podArgs, error) {
	var a podArgs
	var unknown []string
	ignoreUnknown := false
	for pair := range strings.SplitSeq(text, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return a, badVariable("CNI_ARGS", text, fmt.Sprintf("%q is not a pair KEY=value", pair))
		}
		known, err := a.set(key, value)
		switch {
		case err != nil:
			return a, err
		case key == "IgnoreUnknown":
			ignoreUnknown = value == "1" || strings.EqualFold(value, "true")
		case !known:
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 && !ignoreUnknown {
		return a, badVariable("CNI_ARGS", text, fmt.Sprintf("unknown keys %s: add IgnoreUnknown=1 if they are for others", strings.Join(unknown, ", ")))
	}
	return a, nil
}

func (a *podArgs) set(key, value string) (known bool, err error) {
	var problems []string
	switch key {
	case "K8S_POD_NAMESPACE":
		a.namespace, problems = value, validation.IsDNS1123Label(value)
	case "K8S_POD_NAME":
		a.pod, problems = value, validation.IsDNS1123Subdomain(value)
	case "K8S_POD_UID":
		a.uid = value
	case "K8S_POD_INFRA_CONTAINER_ID": // the same as CNI_CONTAINERID
	case "IP":
		var ok bool
		if a.ip, ok = parseIP(value); !ok {
			problems = []string{"it is not an address"}
		}
	case "MAC":
		a.mac = value
		if !isMAC(value) {
			problems = []string{"it is not an Ethernet address"}
		}
	default:
		return false, nil
	}
	if value == "" {
		problems = nil // as if it were not there
		a.ip = netip.Addr{}
	}
	if len(problems) > 0 {
		return true, badVariable("CNI_ARGS", key+"="+value, problems[0])
	}
	return true, nil
}

// podName is the pod's name when the runtime has none: the beginning of the
// container's id, made a valid name.
func podName(id string) string {
	name := strings.ToLower(id[:min(len(id), 13)])
	name = strings.NewReplacer("_", "-", ".", "-").Replace(name)
	return strings.TrimRight(name, "-")
}

// badVariable names the variable, as the specification wants for its code.
func badVariable(name, value, why string) *client.Error {
	if len(value) > 200 {
		value = value[:200] + "..."
	}
	return fail(client.CodeInvalidEnvironment, fmt.Sprintf("%s is invalid: %q", name, value), why)
}
