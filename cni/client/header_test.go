package client

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// FuzzHeader compares with encoding/json, which is too slow to start with.
func FuzzHeader(f *testing.F) {
	for _, text := range []string{
		``, `{}`, ` { } `, `{`, `[]`, `7`, `{"a":}`, `{"socket":"/run/x"} x`, `{"socket":"/a","socket":"\/b\t\"A\\"}`,
		`{"cniVersion":"1.0.0","name":"twill","type":"twill-cni","socket":"/run/twill/cni.sock","args":{"cni":{"labels":[{"key":"socket","value":"}]"}]}},"x":-1.5e3,"y":null,"z":[true,{"socket":"no"}]}`,
		`{"cniVersion":7,"socket":{"a":"b"}}`, "{\n\t\"socket\" : \"\\ud83d\\ude00 \\ud83d \\ude00x\"\r}", `{"a":"b",}`, `{"a":"b" "c":"d"}`, `{"socket":"\u12"}`, `{"socket":"\x"}`, `{"socket":"`, `{"socket":"\`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, ok := parseHeader(text)
		var all map[string]json.RawMessage
		if json.Unmarshal(text, &all) != nil || all == nil || !utf8.Valid(text) {
			return // the agent refuses it, or never sees it
		}
		var want header
		_ = json.Unmarshal(all["cniVersion"], &want.cniVersion) // empty if it is no string
		_ = json.Unmarshal(all["socket"], &want.socket)
		if !ok || h != want {
			t.Errorf("%s: %+v, %v; want %+v", text, h, ok, want)
		}
	})
}

func FuzzQuote(f *testing.F) {
	f.Add("plain")
	f.Add("\"\\\x00\x1f\n é 😀 \xff")
	f.Fuzz(func(t *testing.T, text string) {
		want, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var got, same string
		if err := json.Unmarshal([]byte(quote(text)), &got); err != nil {
			t.Fatalf("%q becomes %s: %v", text, quote(text), err)
		}
		if err := json.Unmarshal(want, &same); err != nil || got != same {
			t.Errorf("%q becomes %q, want %q", text, got, same)
		}
	})
}
