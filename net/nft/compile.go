package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// registers is how many 32-bit registers the kernel's machine has.
const registers = 16

// compiler turns one rule into the kernel's expressions. Variables take
// registers from the lowest up, in the order of their definition; everything
// above is scratch. A concatenation of variables is therefore free of copies if
// it names them in that order, and refused otherwise.
type compiler struct {
	out  []expr.Any
	free int // first register that no variable has
	vars map[string]variableAt

	family byte // that the rule already requires
	err    error
}

type variableAt struct{ reg, words int }

func compileRule(r Rule) ([]expr.Any, error) {
	c := &compiler{vars: map[string]variableAt{}}
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
		return unix.NFT_REG32_15
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
	reg := c.register(registers - 1)
	c.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{family}})
}

// define evaluates a value into the next free registers.
func (c *compiler) define(name string, v Value) {
	words := v.size() / 4
	v.load(c, c.free)
	c.vars[name] = variableAt{c.free, words}
	c.free += words
}

// loadKey makes the concatenation of values stand in consecutive registers and
// returns the first. Leading variables must be adjacent; if other values
// follow, the last variable must be the one defined last, so that they can be
// loaded behind it. scratch is where loading may begin at the earliest.
func (c *compiler) loadKey(values []Value, scratch int) int {
	start, next := -1, scratch
	for i, v := range values {
		if name, ok := v.(variable); ok {
			at, known := c.vars[string(name)]
			switch {
			case !known:
				c.fail("variable %s is not defined", name)
			case i == 0:
				start = at.reg
			case next != at.reg:
				c.fail("variable %s does not follow the one before it", name)
			}
			next = at.reg + at.words
			continue
		}
		if start < 0 {
			start = scratch
		}
		if next < scratch {
			c.fail("%s would overwrite a variable", v)
		}
		v.load(c, next)
		next += v.size() / 4
	}
	return max(start, 0)
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
