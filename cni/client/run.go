package client

import (
	"strconv"
	"syscall"
)

// Run does what the executable does: it reads the variables, and the
// configuration from standard input, writes the result or error to standard
// output and returns the exit status.
func Run() int {
	reply := answer()
	// Nothing mends a failure to write; the status says that something is wrong.
	if writeAll(1, reply.Output) != nil {
		return 1
	}
	return int(reply.Status)
}

func answer() Reply {
	command, _ := syscall.Getenv("CNI_COMMAND")
	if command == "" {
		return failed(&Error{Code: CodeInvalidEnvironment, Msg: "CNI_COMMAND is not set",
			Details: "twill-cni is a CNI plugin: a container runtime starts it"})
	}
	config, failure := readConfig()
	if failure != nil {
		return failed(failure)
	}
	if command == Version && len(config) == 0 {
		return version("") // until 0.4.0: "Parameters: NONE"
	}
	h, ok := parseHeader(config)
	if !ok {
		return failed(&Error{Code: CodeDecode, Msg: "can't decode the network configuration", Details: "it is not a JSON object"})
	}
	if command == Version {
		return version(h.cniVersion)
	}
	if h.socket == "" {
		h.socket = DefaultSocket
	}
	call := Call
	if command == Add {
		call = await
	}
	reply, err := call(h.socket, variables(), config)
	if err == nil {
		return reply
	}
	if e := NotIn(h.cniVersion, command); e != nil {
		return failed(e)
	}
	e := Error{Code: CodeTryAgainLater,
		Msg: "the twill agent on this node does not answer at " + h.socket + ": " + err.Error() + ": see whether it runs (twill status)"}
	if command == Status {
		e.Code = CodeNotAvailable
	}
	return failed(e.In(h.cniVersion))
}

// variables are those that the specification speaks of.
func variables() []string {
	var out []string
	for _, v := range syscall.Environ() {
		if len(v) > 4 && v[:4] == "CNI_" {
			out = append(out, v)
		}
	}
	return out
}

func readConfig() ([]byte, *Error) {
	config := make([]byte, 0, 4096)
	for {
		if len(config) == cap(config) {
			config = append(config, 0)[:len(config)]
		}
		n, err := syscall.Read(0, config[len(config):cap(config)])
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return nil, &Error{Code: CodeIO, Msg: "can't read the network configuration", Details: err.Error()}
		case n == 0:
			return config, nil
		}
		if config = config[:len(config)+n]; len(config) > MaxMessage/2 {
			return nil, &Error{Code: CodeInvalidConfig, Msg: "the network configuration is too large",
				Details: "more than " + strconv.Itoa(MaxMessage/2) + " bytes"}
		}
	}
}

// failed words an error that arose without the agent.
func failed(e *Error) Reply {
	text := "{\n"
	if e.CNIVersion != "" {
		text += `    "cniVersion": ` + quote(e.CNIVersion) + ",\n"
	}
	text += `    "code": ` + strconv.Itoa(e.Code) + ",\n" + `    "msg": ` + quote(e.Msg)
	if e.Details != "" {
		text += ",\n" + `    "details": ` + quote(e.Details)
	}
	return Reply{1, []byte(text + "\n}\n")}
}

// version answers VERSION, for which no agent is needed.
func version(asked string) Reply {
	if asked == "" {
		asked = Versions[len(Versions)-1]
	}
	text := `{"cniVersion":` + quote(asked) + `,"supportedVersions":[`
	for i, v := range Versions {
		if i > 0 {
			text += ","
		}
		text += quote(v)
	}
	return Reply{0, []byte(text + "]}\n")}
}
