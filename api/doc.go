// Package api holds the kinds that people write and that Twill keeps in its
// store: their Go types, defaults, validation and registry. Kubernetes kinds
// are the upstream types; projectcalico.org/v3 kinds are our own types with the
// published JSON names and meaning; twill.io/v1 has what neither defines.
//
// It never talks to a store, a kernel or a clock.
package api
