package ipam

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
// mine are the blocks that the node knows to be its own, and whether the store has
// confirmed that since the last boot; one that the store confirms now is returned
// before a new one is claimed. A block that is the node's by the store alone is given
// back first: its claim was cut short, or its release, which may still reach the
// store and must not hit a block in use. heard are blocks that count as claimed even
// if the store does not know them. ErrExhausted when no block is free.
func (c Claimer) Claim(ctx context.Context, pools []Pool, mine map[netip.Prefix]bool, heard []claim) (netip.Prefix, error) {
	blocks, err := c.list(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, block := range slices.SortedFunc(maps.Keys(blocks), netip.Prefix.Compare) {
		if blocks[block] != c.Node {
			continue
		}
		isOf := func(p Pool) bool { return p.hasBlock(block) }
		switch confirmed, known := mine[block]; {
		case known && !confirmed && slices.ContainsFunc(pools, isOf):
			return block, nil
		case !known:
			if err := c.Release(ctx, block); err != nil {
				return netip.Prefix{}, err
			}
			delete(blocks, block)
		}
	}
	for _, h := range heard {
		if _, known := blocks[h.block]; !known && h.node != c.Node {
			blocks[h.block] = h.node
		}
	}
	for _, p := range pools {
		for block := range p.unclaimed(c.Node, blocks) {
			if err := ctx.Err(); err != nil {
				return netip.Prefix{}, fmt.Errorf("claim a block of pool %s: %w", p.Prefix, err)
			}
			switch err := c.create(ctx, block); {
			case err == nil:
				return block, nil
			case !errors.Is(err, store.ErrExists): // else another node was faster
				return netip.Prefix{}, err
			}
		}
	}
	return netip.Prefix{}, exhausted(c.Node, pools, blocks)
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

// unclaimed goes through the blocks of the pool that are free beside those given,
// in the node's order (Candidates). Blocks without an address that can be given out
// are left out.
func (p Pool) unclaimed(node string, blocks map[netip.Prefix]string) iter.Seq[netip.Prefix] {
	taken := occupied(p, blocks)
	return func(yield func(netip.Prefix) bool) {
		for block := range p.Candidates(node) {
			if !taken(block) && p.reservedIn(block) < int(size(block)) && !yield(block) {
				return
			}
		}
	}
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
type exhaustedError struct {
	text   string
	others bool // other nodes own blocks of the pools
}

func (e *exhaustedError) Error() string        { return e.text }
func (e *exhaustedError) Is(target error) bool { return target == ErrExhausted }

func exhausted(node string, pools []Pool, blocks map[netip.Prefix]string) error {
	names, others := make([]string, len(pools)), false
	for i, p := range pools {
		names[i] = p.Prefix.String()
		for block, owner := range blocks {
			others = others || owner != node && block.Overlaps(p.Prefix)
		}
	}
	subject := "pool " + strings.Join(names, "") + " is"
	if len(names) != 1 {
		subject = "pools " + strings.Join(names, ", ") + " are"
	}
	return &exhaustedError{fmt.Sprintf("%s exhausted on %s: remove pods from this node or add a pool", subject, node), others}
}
