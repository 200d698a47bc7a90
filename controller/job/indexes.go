package job

import (
	"strconv"
	"strings"
)

// indexes is a set of completion indexes as ascending spans that do not touch,
// as the status has it: "1,3-5,7,8".
type indexes []span

type span struct{ first, last int }

// parseIndexes reads a set; what cannot be read or is not below completions is
// left out.
func parseIndexes(s string, completions int) indexes {
	var out indexes
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(low)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(high); err != nil {
				continue
			}
		}
		if first >= completions {
			break
		}
		out = out.add(first, min(last, completions-1))
	}
	return out
}

// add returns the set with a span more.
func (x indexes) add(first, last int) indexes {
	out := make(indexes, 0, len(x)+1)
	placed := false
	for _, s := range x {
		switch {
		case s.last+1 < first:
			out = append(out, s)
		case last+1 < s.first:
			if !placed {
				out, placed = append(out, span{first, last}), true
			}
			out = append(out, s)
		default:
			first, last = min(first, s.first), max(last, s.last)
		}
	}
	if !placed {
		out = append(out, span{first, last})
	}
	return out
}

func (x indexes) union(y indexes) indexes {
	for _, s := range y {
		x = x.add(s.first, s.last)
	}
	return x
}

func (x indexes) has(i int) bool {
	for _, s := range x {
		if s.first <= i && i <= s.last {
			return true
		}
	}
	return false
}

func (x indexes) count() int {
	n := 0
	for _, s := range x {
		n += s.last - s.first + 1
	}
	return n
}

// common is how many indexes both sets have.
func (x indexes) common(y indexes) int {
	n := 0
	for _, a := range x {
		for _, b := range y {
			n += max(0, min(a.last, b.last)-max(a.first, b.first)+1)
		}
	}
	return n
}

// missing are the n lowest indexes below completions that are not in the set.
func (x indexes) missing(n, completions int) []int {
	var out []int
	next := 0
	for _, s := range x {
		for ; next < s.first && next < completions && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, s.last+1)
	}
	for ; next < completions && len(out) < n; next++ {
		out = append(out, next)
	}
	return out
}

func (x indexes) String() string {
	var b strings.Builder
	for _, s := range x {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s.first))
		if s.last > s.first {
			sep := byte('-')
			if s.last == s.first+1 {
				sep = ','
			}
			b.WriteByte(sep)
			b.WriteString(strconv.Itoa(s.last))
		}
	}
	return b.String()
}
