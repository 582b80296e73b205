package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/twill-net/twill/lab/load"
)

// The environment by which a pod knows itself.
const (
	EnvName      = "POD_NAME"
	EnvNamespace = "POD_NAMESPACE"
	EnvNode      = "NODE_NAME"
	// EnvReady is the number of a file descriptor to which the web server
	// writes one byte once it listens.
	EnvReady = "TWILL_READY_FD"
)

// AskPage is the datagram that the web server's UDP port answers with the page;
// it sends any other back as it came.
const AskPage = "?"

// Identity is what a web server tells about itself.
type Identity struct{ Name, Namespace, Node string }

// Page is what the web server answers: who it is, at which address it was
// reached and from which address it sees the client come.
func (id Identity) Page(local, client net.Addr) string {
	return fmt.Sprintf("name:      %s\nnamespace: %s\nnode:      %s\naddress:   %s\nclient:    %s\n",
		id.Name, id.Namespace, id.Node, hostOf(local), hostOf(client))
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip != nil {
		return ip.String() // an IPv4 client of a dual-stack socket, as IPv4
	}
	return host
}

// ServeHTTP answers every request with the page.
func (id Identity) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	client, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
	if err != nil || local == nil {
		http.Error(w, "connection without addresses", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, id.Page(local, client))
}

// Echo answers datagrams until the socket is closed. local is the address that
// the page tells.
func (id Identity) Echo(packets net.PacketConn, local func(client net.Addr) net.Addr) {
	buffer := make([]byte, 64<<10)
	for {
		n, client, err := packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		answer := buffer[:n]
		if string(answer) == AskPage {
			answer = []byte(id.Page(local(client), client))
		}
		_, _ = packets.WriteTo(answer, client)
	}
}

// localFor is the address from which this host reaches the client: the one by
// which the client has reached a host with a single address of each family.
func localFor(client net.Addr) net.Addr {
	c, err := net.Dial("udp", client.String())
	if err != nil {
		return client
	}
	defer c.Close()
	return c.LocalAddr()
}

const webUsage = "web [--port PORT]..."

func webMain(args []string, out, errs io.Writer) int {
	flags := pflag.NewFlagSet("web", pflag.ContinueOnError)
	ports := flags.IntSlice("port", []int{80}, "port for HTTP over TCP and for the UDP echo; may be repeated")
	if code, done := parse(flags, webUsage, args, out, errs); done {
		return code
	}
	if flags.NArg() > 0 {
		return misuse(flags, webUsage, "no arguments are taken", errs)
	}
	id := Identity{os.Getenv(EnvName), os.Getenv(EnvNamespace), os.Getenv(EnvNode)}
	if id.Name == "" {
		id.Name, _ = os.Hostname()
	}
	server := &http.Server{Handler: id, ReadHeaderTimeout: time.Minute}
	failed := make(chan error, len(*ports))
	for _, port := range *ports {
		address := net.JoinHostPort("", strconv.Itoa(port))
		stream, err := net.Listen("tcp", address)
		if err != nil {
			fmt.Fprintln(errs, "web:", err)
			return exitFailed
		}
		listen := net.ListenConfig{Control: load.Patiently}
		packets, err := listen.ListenPacket(context.Background(), "udp", address)
		if err != nil {
			fmt.Fprintln(errs, "web:", err)
			return exitFailed
		}
		go id.Echo(packets, localFor)
		go func() { failed <- server.Serve(stream) }()
	}
	tellReady()

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	select {
	case err := <-failed:
		fmt.Fprintln(errs, "web:", err)
		return exitFailed
	case <-ctx.Done():
		return exitOK
	}
}

func tellReady() {
	fd, err := strconv.Atoi(os.Getenv(EnvReady))
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, _ = f.Write([]byte{1})
	f.Close()
}
