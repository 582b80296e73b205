// Package policy knows what NetworkPolicies mean. Parse brings a policy into a
// normal form; Evaluate answers, rule by rule and in words, whether one
// connection is allowed; a Compiler turns all policies, namespaces and
// endpoints into port classes and union sets, a form that a packet filter
// evaluates in a constant number of look-ups, and says after every change which
// of them differ.
//
// Evaluate is written straight from the API's specification and is the oracle
// that the Compiler is tested against.
//
// It never does I/O, reads no clock, and knows neither nftables nor interfaces.
package policy
