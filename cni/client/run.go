package client

import (
	"encoding/json"
	"fmt"
	"io"
)

// Run does what the executable does: it reads the variables by env and the
// configuration from stdin, writes the result or error to stdout and returns
// the exit status.
func Run(env func(string) string, stdin io.Reader, stdout io.Writer) int {
	result, failure := run(env, stdin)
	if failure != nil {
		// Encoding a struct of strings and writing it can't be mended by
		// anything if it fails; the status says that something is wrong.
		text, _ := json.MarshalIndent(failure, "", "    ")
		fmt.Fprintf(stdout, "%s\n", text)
		return 1
	}
	if len(result) > 0 {
		if _, err := fmt.Fprintf(stdout, "%s\n", result); err != nil {
			return 1
		}
	}
	return 0
}

// header is what the client itself has to know of the configuration.
type header struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
}

func run(env func(string) string, stdin io.Reader) (json.RawMessage, *Error) {
	command := env("CNI_COMMAND")
	if command == "" {
		return nil, &Error{Code: CodeInvalidEnvironment, Msg: "CNI_COMMAND is not set",
			Details: "twill-cni is a CNI plugin: a container runtime starts it"}
	}
	config, err := io.ReadAll(io.LimitReader(stdin, MaxMessage/2+1))
	if err != nil {
		return nil, &Error{Code: CodeIO, Msg: "can't read the network configuration", Details: err.Error()}
	}
	if len(config) > MaxMessage/2 {
		return nil, &Error{Code: CodeInvalidConfig, Msg: "the network configuration is too large",
			Details: fmt.Sprintf("more than %d bytes", MaxMessage/2)}
	}
	var h header
	if err := json.Unmarshal(config, &h); err != nil {
		return nil, &Error{Code: CodeDecode, Msg: "can't decode the network configuration", Details: err.Error()}
	}
	if command == Version {
		return version(h.CNIVersion)
	}
	if h.Socket == "" {
		h.Socket = DefaultSocket
	}
	reply, err := Call(h.Socket, Request{
		Command: command, ContainerID: env("CNI_CONTAINERID"), NetNS: env("CNI_NETNS"), IfName: env("CNI_IFNAME"),
		Args: env("CNI_ARGS"), Path: env("CNI_PATH"), Config: config,
	})
	if err != nil {
		code := CodeTryAgainLater
		if command == Status {
			code = CodeNotAvailable
		}
		return nil, &Error{CNIVersion: h.CNIVersion, Code: code, Msg: fmt.Sprintf(
			"the twill agent on this node does not answer at %s: %v: see whether it runs (twill status)", h.Socket, err)}
	}
	return reply.Result, reply.Error
}

// version answers VERSION, for which no agent is needed.
func version(asked string) (json.RawMessage, *Error) {
	if asked == "" {
		asked = Versions[len(Versions)-1]
	}
	text, err := json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{asked, Versions})
	if err != nil {
		return nil, &Error{Code: CodeFailed, Msg: err.Error()}
	}
	return text, nil
}
