// Package nft makes a plan's chains, sets and elements true in the kernel: they
// are the nftables table "inet twill", all of which is ours. It talks netlink,
// writes only what differs, and orders transactions so that a packet on its
// way is judged by what held before a change or by what holds after it.
//
// It never runs the nft program, never touches another table, and decides
// nothing: what is not in the plan is removed, and what can't be expressed is
// refused with the object's name.
//
// How it works: a [Kernel] keeps a mirror of what it believes the kernel to
// have. Apply compares only the plan's dirty keys with the mirror. Reading the
// kernel (at first, after Resync, after a failed transaction, or where Watch
// saw somebody else's hand) corrects the mirror and marks the plan's keys dirty
// where it was wrong, so starting, changing and mending are the same path.
//
// Expressions, set types and user data are those of
// github.com/google/nftables. The messages are put together here, because
// that library's connection can't say which object of a transaction the
// kernel refused, nor which set's element somebody removed, nor load the
// original destination of a connection ("ct original ip daddr").
package nft
