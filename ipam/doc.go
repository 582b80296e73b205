// Package ipam gives pods their addresses. A pool is cut into blocks; a node
// claims blocks in the store, by creating an object that only one node can
// create, and hands out the addresses of its blocks by itself. What it handed
// out stands in a journal on the node, so that attaching a pod needs no store.
//
// Pool, BlockName and the choice of blocks are pure arithmetic. Claimer talks
// to the store, Allocator keeps the journal. The package never looks at the
// kernel: the caller says which pod interfaces exist (Reconcile).
package ipam
