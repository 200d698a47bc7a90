package main

import (
	"fmt"
	"io"
	"slices"
)

// row is a line of the table.
type row struct {
	what string
	got  map[string][]float64 // by server, one for each round
	unit string
	// more is better when set; then the budget is a minimum of edged over etcd.
	more   bool
	budget float64
}

type table struct{ rows []*row }

func (t *table) add(name, what, unit string, more bool, budget, value float64) {
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.what == what })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &row{what, map[string][]float64{}, unit, more, budget})
	}
	t.rows[i].got[name] = append(t.rows[i].got[name], value)
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "| %-66s | %8s | %8s | %-4s | %-19s | budget |\n|---|---|---|---|---|---|\n", "what", "etcd", "edged", "unit", "ratio")
	for _, r := range t.rows {
		a, b := r.got["etcd"], r.got["edged"]
		var ratios []float64
		for i := range min(len(a), len(b)) {
			if a[i] > 0 {
				ratios = append(ratios, b[i]/a[i])
			}
		}
		ratio, verdict := "", ""
		switch mid := median(ratios); {
		case len(ratios) == 1:
			ratio = fmt.Sprintf("%.2f", mid)
		case len(ratios) > 1:
			ratio = fmt.Sprintf("%.2f (%.2f to %.2f)", mid, slices.Min(ratios), slices.Max(ratios))
		}
		if r.budget > 0 && len(ratios) > 0 {
			ok := median(ratios) <= r.budget
			if r.more {
				ok = median(ratios) >= r.budget
			}
			verdict = fmt.Sprintf("%.2f %s", r.budget, map[bool]string{true: "ok", false: "MISSED"}[ok])
		}
		fmt.Fprintf(w, "| %-66s | %8s | %8s | %-4s | %-19s | %s |\n", r.what, digits(median(a)), digits(median(b)), r.unit, ratio, verdict)
	}
}

func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	of = slices.Sorted(slices.Values(of))
	return (of[(len(of)-1)/2] + of[len(of)/2]) / 2
}

// digits writes a value with three digits, or as a whole number.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
