package raftstore

import "edged/raftstore/consensus"

func coreEntries(n *uint64) func(*consensus.Core) {
	return func(c *consensus.Core) { *n = c.Kept() }
}

func coreTicks(needs *bool) func(*consensus.Core) {
	return func(c *consensus.Core) { *needs = c.NeedsTicks() }
}
