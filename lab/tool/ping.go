package tool

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const pingUsage = "ping [-4|-6] [-c COUNT] [-i SECONDS] [-W SECONDS] HOST"

func pingMain(args []string, out, errs io.Writer) int {
	flags := pflag.NewFlagSet("ping", pflag.ContinueOnError)
	count := flags.IntP("count", "c", 3, "send COUNT requests")
	wait := flags.Float64P("timeout", "W", 1, "wait SECONDS for each answer")
	interval := flags.Float64P("interval", "i", 1, "send one every SECONDS")
	only4 := flags.BoolP("ipv4", "4", false, "use IPv4")
	only6 := flags.BoolP("ipv6", "6", false, "use IPv6")
	flags.BoolP("quiet", "q", false, "accepted for habit's sake")
	if code, done := parse(flags, pingUsage, args, out, errs); done {
		return code
	}
	if flags.NArg() != 1 {
		return misuse(flags, pingUsage, "one HOST is needed", errs)
	}
	network := "ip"
	switch {
	case *only4 && *only6:
		return misuse(flags, pingUsage, "-4 and -6 exclude each other", errs)
	case *only4:
		network = "ip4"
	case *only6:
		network = "ip6"
	}
	dst, err := net.ResolveIPAddr(network, flags.Arg(0))
	if err != nil {
		_, problem := explain(err, flags.Arg(0))
		fmt.Fprintln(errs, "ping:", problem)
		return exitFailed
	}
	p, err := newPinger(dst)
	if err != nil {
		fmt.Fprintln(errs, "ping:", err)
		return exitFailed
	}
	defer p.conn.Close()
	answered := 0
	for seq := 1; seq <= *count; seq++ {
		began := time.Now()
		from, err := p.once(seq, seconds(*wait))
		if err != nil {
			fmt.Fprintf(out, "seq=%d: %v\n", seq, err)
		} else {
			answered++
			fmt.Fprintf(out, "answer from %s: seq=%d time=%.2f ms\n", from, seq, float64(time.Since(began).Microseconds())/1000)
		}
		if rest := seconds(*interval) - time.Since(began); seq < *count && rest > 0 {
			time.Sleep(rest)
		}
	}
	fmt.Fprintf(out, "%s: %d sent, %d answered\n", dst, *count, answered)
	if answered == 0 {
		return exitTimeout
	}
	return exitOK
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// pinger sends echo requests over a raw socket. The kernel gives such a socket
// every ICMP message that comes in, so answers are known by their token.
type pinger struct {
	conn     *icmp.PacketConn
	dst      *net.IPAddr
	protocol int
	request  icmp.Type
	token    []byte
}

func newPinger(dst *net.IPAddr) (*pinger, error) {
	p := &pinger{dst: dst, protocol: 1, request: ipv4.ICMPTypeEcho, token: make([]byte, 16)}
	network, local := "ip4:icmp", "0.0.0.0"
	if dst.IP.To4() == nil {
		p.protocol, p.request = 58, ipv6.ICMPTypeEchoRequest
		network, local = "ip6:ipv6-icmp", "::"
	}
	if _, err := rand.Read(p.token); err != nil {
		return nil, err
	}
	var err error
	p.conn, err = icmp.ListenPacket(network, local)
	return p, err
}

// once sends one request and returns who answered it.
func (p *pinger) once(seq int, patience time.Duration) (from net.Addr, err error) {
	id := int(p.token[0])<<8 | int(p.token[1])
	message := icmp.Message{Type: p.request, Body: &icmp.Echo{ID: id, Seq: seq, Data: p.token}}
	packet, err := message.Marshal(nil)
	if err != nil {
		return nil, err
	}
	if err := p.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := p.conn.WriteTo(packet, p.dst); err != nil {
		return nil, err
	}
	buffer := make([]byte, 1500)
	for {
		n, from, err := p.conn.ReadFrom(buffer)
		if err != nil {
			return nil, fmt.Errorf("no answer within %s", patience)
		}
		answer, err := icmp.ParseMessage(p.protocol, buffer[:n])
		if err != nil {
			continue
		}
		switch body := answer.Body.(type) {
		case *icmp.Echo:
			isReply := answer.Type == ipv4.ICMPTypeEchoReply || answer.Type == ipv6.ICMPTypeEchoReply
			if isReply && body.Seq == seq && bytes.Equal(body.Data, p.token) {
				return from, nil
			}
		case *icmp.DstUnreach:
			// The quoted packet ends with our data if it is about our request.
			if bytes.Contains(body.Data, p.token) {
				return nil, fmt.Errorf("%s says: destination unreachable (code %d)", from, answer.Code)
			}
		}
	}
}
