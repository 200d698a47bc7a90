package cronjob

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// many is the number of missed times that a person is told of, as upstream.
const many = 100

// parse reads a CronJob's schedule in its time zone.
func parse(cj *batchv1.CronJob) (schedule cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil { // the parser indexes what may not be there
			schedule, err = nil, fmt.Errorf("unparseable: %v", r)
		}
	}()
	spec := cj.Spec.Schedule
	if tz := cj.Spec.TimeZone; tz != nil && !strings.Contains(spec, "TZ") {
		spec = fmt.Sprintf("TZ=%s %s", *tz, spec)
	}
	return cron.ParseStandard(spec)
}

// Due returns the latest time of the schedule after since and not after now,
// zero if there is none, and how many times that left behind. It takes a few
// steps however long ago since is.
func Due(schedule cron.Schedule, since, now time.Time) (at time.Time, missed int64, err error) {
	first := schedule.Next(since)
	second := schedule.Next(first)
	switch {
	case first.IsZero():
		return time.Time{}, 0, errors.New("it names no time")
	case now.Before(first):
		return time.Time{}, 0, nil
	case second.After(now):
		return first, 0, nil
	}
	period := second.Sub(first).Round(time.Second)
	if period < time.Second {
		return time.Time{}, 0, errors.New("time difference between two schedules is less than 1 second")
	}
	// Schedules are not even: go near, one period back, and walk.
	missed = int64(now.Sub(first)/period) + 1
	near := first.Add(time.Duration(missed-2) * period)
	for at = schedule.Next(near); !at.IsZero() && !at.After(now); {
		next := schedule.Next(at)
		if next.IsZero() || next.After(now) {
			return at, missed, nil
		}
		at = next
	}
	// An uneven schedule with a gap now: walk from before the gap.
	for step := period; ; step *= 2 {
		from := now.Add(-step)
		if !from.After(since) {
			from = since
		}
		if t := schedule.Next(from); !t.After(now) {
			for next := schedule.Next(t); !next.IsZero() && !next.After(now); next = schedule.Next(t) {
				t = next
			}
			return t, missed, nil
		}
		if from.Equal(since) {
			return time.Time{}, missed, nil
		}
	}
}
