package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// registers is how many 32-bit registers the kernel's machine has.
const registers = 16

// compiler turns one rule into the kernel's expressions. Every statement loads
// what it needs from register 0 up, and nothing stays in a register from one
// statement to the next: nft(8) cannot list rules in which it does.
type compiler struct {
	out    []expr.Any
	family byte // that the rule already requires
	err    error
}

func compileRule(r Rule) ([]expr.Any, error) { return compileIn(0, r) }

// compileIn is compileRule for a table that sees one address family only.
func compileIn(family byte, r Rule) ([]expr.Any, error) {
	c := &compiler{family: family}
	for _, s := range r {
		s.compile(c)
	}
	if c.err != nil {
		return nil, fmt.Errorf("rule %q: %w", r, c.err)
	}
	return c.out, nil
}

func (c *compiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

func (c *compiler) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// register is the kernel's number of the 32-bit register reg.
func (c *compiler) register(reg int) uint32 {
	if reg >= registers {
		c.fail("more than %d registers needed", registers)
		reg = 0
	}
	return unix.NFT_REG32_00 + uint32(reg)
}

// require makes the rule match one address family only, once.
func (c *compiler) require(family byte) {
	if family == 0 || c.family == family {
		return
	}
	if c.family != 0 {
		c.fail("both address families in one rule")
		return
	}
	c.family = family
	reg := c.register(registers - 1) // below may be half of a key
	c.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{family}})
}

// loadKey loads the concatenation of values and returns the register after it.
func (c *compiler) loadKey(values []Value) int {
	next := 0
	for _, v := range values {
		v.load(c, next)
		next += v.size() / 4
	}
	return next
}

// key loads a key and returns the kernel's number of its register.
func (c *compiler) key(values []Value) uint32 {
	c.loadKey(values)
	return c.register(0)
}

// lookup loads what a map has for a key; the rule ends where it has nothing.
func (c *compiler) lookup(m *Set, key []Value) {
	reg := c.key(key)
	c.add(&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m.Name})
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
