// Package cli is the commands that people type: one file a command, each made
// by a function that takes the Session. They read and write intent in the
// store; what they print is for people unless -o asks for JSON, YAML or names.
//
// It never decides anything about the network: plans, traces and validation are
// other rooms'. Of the host's kernel it only knows how to call "cleanup".
package cli
