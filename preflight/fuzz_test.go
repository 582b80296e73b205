package preflight

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/dataplane/nft"
)

// FuzzLegacy reads tables as the kernel gives them and follows packets through
// them, whatever they are: numbers that lie, jumps that go round.
func FuzzLegacy(f *testing.F) {
	f.Add(make([]byte, infoSize), make([]byte, 300))
	f.Fuzz(func(t *testing.T, info, blob []byte) {
		if len(info) < infoSize {
			return
		}
		for _, l := range legacyFamilies {
			follow(l.parse("filter", info, blob))
		}
	})
}

// FuzzExpression follows a rule of any expression.
func FuzzExpression(f *testing.F) {
	f.Add("payload", []byte{8, 0, 1, 0, 0, 0, 0, 1}, "drop")
	f.Fuzz(func(t *testing.T, name string, list []byte, verdict string) {
		load := nft.Expression{Name: "meta", Attributes: attributes(nil).number(unix.NFTA_META_DREG, register).number(unix.NFTA_META_KEY, unix.NFT_META_IIFNAME)}
		rule := []nft.Expression{load, {Name: name, Attributes: list, Verdict: verdict, Set: []nft.SetElement{{First: verdict, Last: name, Verdict: verdict}}}}
		follow([]nft.Foreign{{Family: unix.NFPROTO_INET, Table: "t", Name: "c", Type: "filter", Hook: unix.NF_INET_LOCAL_IN, Rules: [][]nft.Expression{rule}}})
	})
}

func follow(chains []nft.Foreign) {
	for _, family := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		for at := range hooks {
			hook(chains, at, packet{family: family, proto: udp, port: 53, in: device{"eth0", 2}, to: make([]byte, 4)})
		}
	}
}
