package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/store"
)

// ErrExhausted is in the error when a pool has no free address and no free
// block for the node.
var ErrExhausted = errors.New("pool is exhausted")

const affinityPrefix = "host:"

// Claimer claims and releases blocks for one node. It holds no state: what is
// claimed stands in the store.
type Claimer struct {
	Store store.Store
	Node  string
}

// Claim makes a free block of one of the pools the node's own and returns it.
// have says which blocks the node knows to be its own; a block that is the
// node's in the store and not known (it was claimed just before a crash) is
// returned before a new one is claimed. heard are blocks that count as claimed
// even if the store does not know them. ErrExhausted when no block is free.
func (c Claimer) Claim(ctx context.Context, pools []Pool, have func(netip.Prefix) bool, heard []claim) (netip.Prefix, error) {
	blocks, err := c.list(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, p := range pools {
		for _, block := range slices.SortedFunc(maps.Keys(blocks), netip.Prefix.Compare) {
			if blocks[block] == c.Node && !have(block) && block.Bits() >= p.Prefix.Bits() && p.Prefix.Contains(block.Addr()) {
				return block, nil
			}
		}
	}
	for _, h := range heard {
		if _, known := blocks[h.block]; !known && h.node != c.Node {
			blocks[h.block] = h.node
		}
	}
	for _, p := range pools {
		taken := occupied(p, blocks)
		for block := range p.Candidates(c.Node) {
			if err := ctx.Err(); err != nil {
				return netip.Prefix{}, fmt.Errorf("claim a block of pool %s: %w", p.Prefix, err)
			}
			if taken(block) {
				continue
			}
			switch err := c.create(ctx, block); {
			case err == nil:
				return block, nil
			case !errors.Is(err, store.ErrExists): // else another node was faster
				return netip.Prefix{}, err
			}
		}
	}
	return netip.Prefix{}, exhausted(c.Node, pools)
}

// ClaimBlock makes a certain block the node's own; it is no error if it is
// already. ErrAddress when another node has it or part of it.
func (c Claimer) ClaimBlock(ctx context.Context, block netip.Prefix) error {
	blocks, err := c.list(ctx)
	if err != nil {
		return err
	}
	if blocks[block] == c.Node {
		return nil
	}
	for other, owner := range blocks {
		if other.Overlaps(block) {
			return fmt.Errorf("%w: block %s belongs to node %s", ErrAddress, other, owner)
		}
	}
	err = c.create(ctx, block)
	if errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w: another node has just claimed block %s", ErrAddress, block)
	}
	return err
}

// Own lists the node's blocks, in no order.
func (c Claimer) Own(ctx context.Context) ([]netip.Prefix, error) {
	blocks, err := c.list(ctx)
	if err != nil {
		return nil, err
	}
	var own []netip.Prefix
	for block, owner := range blocks {
		if owner == c.Node {
			own = append(own, block)
		}
	}
	return own, nil
}

// Release gives a block back. It is no error if it is gone or another node's
// by now; that one is left alone.
func (c Claimer) Release(ctx context.Context, block netip.Prefix) error {
	key := api.Key{Name: BlockName(block)}
	obj, err := c.Store.Get(ctx, api.IPAMBlockKind, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release block %s: %w", block, err)
	}
	if b, ok := obj.(*api.IPAMBlock); !ok || b.Spec.Affinity != affinityPrefix+c.Node {
		return nil
	}
	err = c.Store.Delete(ctx, api.IPAMBlockKind, key, obj.GetResourceVersion())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("release block %s: %w", block, err)
	}
	return nil
}

// list returns all blocks of the cluster with their nodes. What is not a block
// with a prefix can't overlap anything and is skipped.
func (c Claimer) list(ctx context.Context) (map[netip.Prefix]string, error) {
	list, err := c.Store.List(ctx, api.IPAMBlockKind, "")
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	blocks := make(map[netip.Prefix]string, len(list.Items))
	for _, obj := range list.Items {
		b, ok := obj.(*api.IPAMBlock)
		if !ok {
			continue
		}
		if prefix, err := netip.ParsePrefix(b.Spec.CIDR); err == nil {
			blocks[prefix.Masked()] = strings.TrimPrefix(b.Spec.Affinity, affinityPrefix)
		}
	}
	return blocks, nil
}

func (c Claimer) create(ctx context.Context, block netip.Prefix) error {
	obj := api.IPAMBlockKind.New().(*api.IPAMBlock)
	obj.ObjectMeta = metav1.ObjectMeta{Name: BlockName(block)}
	obj.Spec = api.IPAMBlockSpec{CIDR: block.String(), Affinity: affinityPrefix + c.Node}
	if _, err := c.Store.Create(ctx, obj); err != nil {
		return fmt.Errorf("claim block %s: %w", block, err)
	}
	return nil
}

// occupied returns a test for blocks of the pool that overlap a claimed one.
// Block names alone don't exclude each other: a pool that was deleted and made
// anew with another block size leaves blocks of the old size behind.
func occupied(p Pool, blocks map[netip.Prefix]string) func(netip.Prefix) bool {
	same := map[netip.Prefix]bool{}
	var larger []netip.Prefix
	for block := range blocks {
		switch {
		case !block.Overlaps(p.Prefix):
		case block.Bits() >= p.BlockBits:
			same[p.BlockOf(block.Addr())] = true
		default:
			larger = append(larger, block)
		}
	}
	return func(candidate netip.Prefix) bool {
		if same[candidate] {
			return true
		}
		for _, l := range larger {
			if l.Overlaps(candidate) {
				return true
			}
		}
		return false
	}
}

// exhaustedError says which pools are used up, and what to do.
type exhaustedError string

func (e exhaustedError) Error() string        { return string(e) }
func (e exhaustedError) Is(target error) bool { return target == ErrExhausted }

func exhausted(node string, pools []Pool) error {
	names := make([]string, len(pools))
	for i, p := range pools {
		names[i] = p.Prefix.String()
	}
	subject := "pool " + strings.Join(names, "") + " is"
	if len(names) != 1 {
		subject = "pools " + strings.Join(names, ", ") + " are"
	}
	return exhaustedError(fmt.Sprintf("%s exhausted on %s: remove pods from this node or add a pool", subject, node))
}
