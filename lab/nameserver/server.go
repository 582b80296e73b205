package nameserver

import (
	"context"
	"log/slog"
	"net"

	"github.com/miekg/dns"
)

// Serve answers queries that come in on the two sockets until ctx ends; it
// closes them.
func (z *Zone) Serve(ctx context.Context, packets net.PacketConn, stream net.Listener, log *slog.Logger) {
	servers := []*dns.Server{
		{PacketConn: packets, Handler: z},
		{Listener: stream, Handler: z},
	}
	for _, s := range servers {
		go func() {
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				log.Error("name server ended", "error", err)
			}
		}()
	}
	<-ctx.Done()
	packets.Close()
	stream.Close()
}

// ServeDNS implements dns.Handler.
func (z *Zone) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	switch {
	case query.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
	case len(query.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
	default:
		reply.Answer, reply.Rcode = z.Answer(query.Question[0])
	}
	reply.Authoritative = reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError
	if reply.Authoritative && len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{z.authority()}
	}
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size := dns.MinMsgSize
		if edns := query.IsEdns0(); edns != nil {
			size = max(size, int(edns.UDPSize()))
			reply.SetEdns0(uint16(size), false)
		}
		reply.Truncate(size)
	}
	// An answer that can't be written is asked for again.
	_ = w.WriteMsg(reply)
}

// authority tells resolvers how long a name stays absent (RFC 2308 §3).
func (z *Zone) authority() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: z.domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: 1,
	}
}
